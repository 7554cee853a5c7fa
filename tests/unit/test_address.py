"""What a REDIS_URL says, in all its forms; what is wrong with one is said without quoting it."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.address import SCHEMES, Address, parse_address
from proxy.errors import UsageError
from proxy.settings import load_settings

HOST = (("h", 6379),)
TEXT = st.characters(exclude_categories=["Cs"])  # an environment holds no lone surrogates
GOOD = {
    "redis://h": Address(kind="server", hosts=HOST),
    "redis://h:7000/3": Address(kind="server", hosts=(("h", 7000),), db=3),
    "redis://h/?db=3": Address(kind="server", hosts=HOST, db=3),
    "redis://[::1]:7000": Address(kind="server", hosts=(("::1", 7000),)),
    "redis://:se%40cret@h": Address(kind="server", hosts=HOST, password="se@cret"),
    "redis://me:pw@h": Address(kind="server", hosts=HOST, username="me", password="pw"),
    "rediss://h": Address(kind="server", hosts=HOST, tls={}),
    "rediss://h?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false": Address(
        kind="server", hosts=HOST, tls={"ssl_ca_certs": "/etc/ca.pem", "ssl_check_hostname": False}
    ),
    "unix:///run/redis%20a.sock?db=1": Address(kind="server", path="/run/redis a.sock", db=1),
    "unix://me:pw@/run/s": Address(kind="server", path="/run/s", username="me", password="pw"),
    "redis+sentinel://a,b:7000/main": Address(
        kind="sentinel", hosts=(("a", 26379), ("b", 7000)), service="main"
    ),
    "redis+sentinel://me:pw@a/main/2?sentinel_username=you&sentinel_password=s": Address(
        kind="sentinel",
        hosts=(("a", 26379),),
        service="main",
        db=2,
        username="me",
        password="pw",
        sentinel_username="you",
        sentinel_password="s",
    ),
    "rediss+sentinel://a/main": Address(kind="sentinel", hosts=(("a", 26379),), service="main", tls={}),
    "redis+cluster://a:1,[::1]:2": Address(kind="cluster", hosts=(("a", 1), ("::1", 2))),
    "rediss+cluster://:pw@a": Address(kind="cluster", hosts=(("a", 6379),), password="pw", tls={}),
}

BAD = (
    *("", "h:6379", "http://h", "redis://", "redis:///0", "redis://h:0", "redis://h:65536", "redis://h:port"),
    *(
        "redis://a,b",
        "redis://h/name",
        "redis://h/-1",
        "redis://h?db=x",
        "redis://h#1",
        "redis://[::1",
        "redis://h?x",
    ),
    *("redis://h?protocol=3", "redis://h?retry_on_timeout=1", "redis://h?ssl_ca_certs=/x", "redis://:a/b@h"),
    *("unix://", "unix://run/s", "unix:///s?db=x", "unix:///s?ssl_ca_certs=/x"),
    *("redis+sentinel://a", "redis+sentinel://a/", "redis+sentinel:///main", "redis+sentinel://a,,b/main"),
    *("redis+sentinel://a/main/x", "redis+sentinel://a/main/1/2"),
    *("redis+cluster://", "redis+cluster://a/1", "redis+cluster://a?db=1", "redis+cluster://a,"),
    *("rediss://h?ssl_cert_reqs=maybe", "rediss://h?ssl_check_hostname=maybe", "rediss://h?ssl_keyfil=/x"),
)


@pytest.mark.parametrize("url", GOOD)
def test_each_form_is_understood(url):
    assert parse_address(url) == GOOD[url]


@pytest.mark.parametrize("url", BAD)
def test_what_is_wrong_is_one_line(url):
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        parse_address(url)
    assert "\n" not in str(caught.value)


@given(user=st.text(TEXT, max_size=10), password=st.text(TEXT, min_size=1, max_size=30))
@pytest.mark.parametrize("place", ["redis://{}@h", "redis+sentinel://{}@a,b/main", "redis+cluster://{}@a,b"])
def test_any_password_can_be_escaped(place, user, password):
    address = parse_address(place.format(f"{quote(user, safe='')}:{quote(password, safe='')}"))
    assert (address.username or "", address.password) == (user, password)


def test_an_address_is_printed_without_passwords():
    url = "rediss+sentinel://me:swordfish@h/main?sentinel_password=swordfish&ssl_password=swordfish"
    assert "swordfish" not in repr(parse_address(url))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("character", list("/?#[]@:%& \\\x01,"))
def test_no_error_and_no_printed_setting_quotes_a_password(scheme, character):
    """Neither where it was escaped nor, as far as that is refused, where it was not."""
    for secret in ("swordfish", f"swordfish{character}swordfish"):
        for url in (
            f"{scheme}://me:{secret}@h1:1/main",
            f"{scheme}://me:{quote(secret, safe='')}@h1:1/main",
            f"{scheme}://h1:1/main?password={secret}",
            f"{scheme}://me:{secret}@/run/s?sentinel_password={secret}",
        ):
            try:
                shown = str(load_settings({"FEEDPROXY_REDIS_URL": url}).effective())
            except UsageError as error:
                shown = str(error)
            assert "swordfish" not in shown, url


def test_certificates_that_cannot_be_loaded_are_found_at_the_start(tmp_path):
    (tmp_path / "no.pem").write_text("no certificate")
    for name in ("ssl_ca_certs", "ssl_certfile"):
        for path in (tmp_path / "missing.pem", tmp_path / "no.pem"):
            with pytest.raises(UsageError, match=r"^FEEDPROXY_CACHE_REDIS_URL: names certificates.+$"):
                load_settings({"FEEDPROXY_CACHE_REDIS_URL": f"rediss://h?{name}={path}"})


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        (
            "redis://h:6379/0",
            ["redis://h", "redis://:secret@h:6379", "redis://me:secret@h/0", "redis://h?db=0"],
        ),
        ("rediss://h:7/2", ["rediss://me:secret@h:7/2?ssl_cert_reqs=none"]),
        ("redis://[::1]:6379/0", ["redis://[::1]"]),
        ("unix:///run/a%20b?db=1", ["unix://me:secret@/run/a%20b?db=1"]),
        ("redis+sentinel://a:26379,b:1/name/0", ["redis+sentinel://:secret@b:1,a/name?sentinel_password=x"]),
        ("rediss+cluster://a:6379,b:6379", ["rediss+cluster://:secret@b,a:6379"]),
    ],
)
def test_however_an_address_is_written_it_has_one_name_without_secrets(name, ways):
    assert [parse_address(way).name for way in (name, *ways)] == [name] * (len(ways) + 1)
