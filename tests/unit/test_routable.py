"""Which addresses strangers may have us connect to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.syndication.routable import is_public, may_connect

NETWORK_OF_TESTS = (ipaddress.ip_network("10.1.0.0/16"),)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00:1450:4001::200e",
        "2001:4860:4860::8888",
    ],
)
def test_hosts_of_the_public_internet(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.170",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.19.0.1",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # IPv4-compatible
        "::ffff:127.0.0.1",
        "::ffff:1.1.1.1",
        "::ffff:0:127.0.0.1",  # IPv4-translated
        "64:ff9b::7f00:1",  # NAT64
        "64:ff9b:1::7f00:1",
        "100::1",
        "2001::1",  # Teredo
        "2001:db8::1",
        "2002:7f00:1::1",  # 6to4
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd12::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_everything_else(address):
    assert not is_public(ipaddress.ip_address(address))
    assert not may_connect(address, 80, NETWORK_OF_TESTS)


@given(st.ip_addresses())
def test_nothing_that_python_knows_as_special_is_public(address):
    if address.is_private or address.is_multicast or address.is_link_local or address.is_reserved:
        assert not is_public(address)


@pytest.mark.parametrize(("port", "may"), [(80, True), (443, True), (22, False), (6379, False)])
def test_ports_of_the_web_alone(port, may):
    assert may_connect("1.1.1.1", port, ()) is may


def test_networks_of_the_operator_are_exempt_with_all_their_ports():
    assert may_connect("10.1.2.3", 8080, NETWORK_OF_TESTS)
    assert not may_connect("10.2.2.3", 80, NETWORK_OF_TESTS)
    assert not may_connect("::ffff:10.1.2.3", 80, NETWORK_OF_TESTS)


def test_what_is_no_address_is_not_connected_to():
    assert not may_connect("localhost", 80, NETWORK_OF_TESTS)
