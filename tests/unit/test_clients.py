"""Who a client is, behind proxies that are believed and others that are not."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.clients import MAX_HOPS, Trust, address_of, name_of

NEAR = Trust((ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8:f::/48")))
PUBLIC = st.ip_addresses(v=4, network="192.0.2.0/24") | st.ip_addresses(v=6, network="2001:db8:a::/48")
TRUSTED = st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=6, network="2001:db8:f::/48")
ANYTHING = st.text(max_size=40) | PUBLIC.map(str) | TRUSTED.map(str)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # Nobody in between, or a stranger who claims so.
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("2001:db8:a:b:c::1", ["198.51.100.7"], "2001:db8:a:b::/64"),
        # A proxy on this host, on a unix socket, in a network of the operator's.
        ("127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("::1", ["2001:db8:a:b:c::1"], "2001:db8:a:b::/64"),
        ("::ffff:127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        (None, ["198.51.100.7"], "198.51.100.7"),
        ("10.1.2.3", ["198.51.100.7"], "198.51.100.7"),
        ("10.1.2.3%eth0", ["::ffff:198.51.100.7"], "198.51.100.7"),
        # The rightmost that is not trusted wins, over headers and their items.
        ("127.0.0.1", ["1.1.1.1, 198.51.100.7,10.9.9.9"], "198.51.100.7"),
        ("127.0.0.1", ["1.1.1.1", "198.51.100.7", "10.9.9.9, 127.0.0.1"], "198.51.100.7"),
        ("127.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("127.0.0.1", ["[2001:db8:a:b::1]:4711"], "2001:db8:a:b::/64"),
        # All trusted: the first of them has asked.
        ("127.0.0.1", ["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        (None, [], ""),
        # What is no address ends the row.
        ("127.0.0.1", ["198.51.100.7, unknown, 10.0.0.2"], "10.0.0.2"),
        ("127.0.0.1", [""], "127.0.0.1"),
        (None, ["nonsense"], ""),
        ("testclient", ["198.51.100.7"], "testclient"),
    ],
)
def test_who_is_counted(peer, forwarded, client):
    assert NEAR.client_of(peer, forwarded).name == client


def test_this_host_is_believed_by_default_and_nobody_else():
    assert Trust().client_of("127.8.8.8", ["198.51.100.7"]).name == "198.51.100.7"
    assert Trust().client_of("10.0.0.1", ["198.51.100.7"]).name == "10.0.0.1"


@given(PUBLIC, st.lists(ANYTHING, max_size=5), st.lists(TRUSTED, max_size=5), TRUSTED)
def test_what_a_client_claims_changes_nothing(client, claims, proxies, peer):
    """Whatever the client sent along, the proxies behind it append what they saw."""
    forwarded = [",".join(claims), ", ".join(map(str, (client, *proxies)))]
    assert NEAR.client_of(str(peer), forwarded).name == name_of(client)


@given(st.none() | TRUSTED.map(str), st.lists(ANYTHING, max_size=5))
def test_any_header_names_someone(peer, forwarded):
    name = NEAR.client_of(peer, forwarded).name
    assert name == "" or ipaddress.ip_network(name).num_addresses in (1, 2**64)


def test_a_long_row_is_not_walked_to_its_end():
    row = ["198.51.100.7", *(f"10.0.{number // 256}.{number % 256}" for number in range(5000))]
    client = NEAR.client_of("127.0.0.1", [",".join(row)]).name
    assert client == row[-MAX_HOPS]


@pytest.mark.parametrize("text", ["", " ", "unknown", "1.2.3", "1.2.3.4.5", ":80", "1.2.3.4:x:y", "[1"])
def test_what_is_no_address(text):
    assert address_of(text) is None


@pytest.mark.parametrize(
    ("client", "exempt"),
    [
        ("192.0.2.1", True),
        ("::ffff:192.0.2.1", True),
        ("2001:db8:1::7", True),
        ("192.0.3.1", False),
        ("2001:db8:1::8", False),  # beside it, in the same /64
        ("127.0.0.1", False),
    ],
)
def test_some_are_exempt_by_their_own_address(client, exempt):
    trust = Trust(exempt=(ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8:1::7/128")))
    assert trust.client_of("127.0.0.1", [client]).exempt is exempt
    assert trust.client_of(client, []).exempt is exempt


def test_who_cannot_be_named_is_not_exempt():
    assert not Trust().client_of(None, []).exempt
    assert not Trust().client_of("testclient", []).exempt
