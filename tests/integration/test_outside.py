"""Requests to addresses that strangers name: what is reached, what is not, and how much it may cost."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import tracemalloc
import zlib

import pytest

from harness.stranger import INSIDE, STRANGERS, Names, strangers
from harness.upstream import Response
from proxy.clock import SystemClock
from proxy.errors import OutsideFailed, OutsideRefused
from proxy.syndication.outside import MAX_REDIRECTS, Outside, SystemResolver, Wanted

CLOCK = SystemClock()
ANYTHING = Wanted(kinds=(), most_bytes=1000)


def soon(seconds=20.0):
    return CLOCK.steady() + seconds


def outside_of(names=None, allowed=(STRANGERS,)):
    return Outside(
        CLOCK,
        user_agent="feedproxy/1 (tests)",
        allowed=allowed,
        resolve=names or Names({}),
        ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )


@pytest.fixture
async def servers():
    async with strangers() as pair:
        yield pair


def says(body, kind="text/html", **headers):
    return Response(body=body, headers={"Content-Type": kind, **headers})


def redirect(location, status=302):
    return Response(status=status, body=b"", headers={"Location": location})


async def test_a_get_says_who_asks_and_nothing_else(servers):
    server, _ = servers
    server.answer = lambda call: says(b"hello")
    answer = await outside_of().get(f"{server.url}/a?b=c#d", ANYTHING, deadline=soon())
    assert (answer.status, answer.body, answer.whole) == (200, b"hello", True)
    (call,) = server.requests
    assert call.target == "/a?b=c"
    assert call.headers["user-agent"] == "feedproxy/1 (tests)"
    assert {"cookie", "authorization", "referer"}.isdisjoint(call.headers)


async def test_a_connection_goes_to_the_address_that_was_checked(servers):
    server, _ = servers
    server.answer = lambda call: says(b"hello")
    names = Names({"blog.example": [["127.0.0.1"], [INSIDE]]})
    answer = await outside_of(names).get(f"http://blog.example:{server.port}/", ANYTHING, deadline=soon())
    assert answer.body == b"hello"
    assert names.asked == ["blog.example"]
    assert server.requests[0].headers["host"] == f"blog.example:{server.port}"


@pytest.mark.parametrize(
    "host", [INSIDE, "inside.example", "[::1]", "[::ffff:127.0.0.2]", "2130706434", "127.2", "0x7f.2"]
)
async def test_nothing_internal_is_contacted(servers, host):
    _, inside = servers
    names = Names({"inside.example": [[INSIDE, "10.0.0.1"]]}) if "inside" in host else SystemResolver()
    with pytest.raises(OutsideRefused, match="leads to no public address") as caught:
        await outside_of(names).get(f"http://{host}:{inside.port}/", ANYTHING, deadline=soon())
    # Whoever asks for a name of the inside is not told where it leads.
    assert "inside" not in host or INSIDE not in str(caught.value)
    assert inside.connections == 0


async def test_of_the_addresses_of_a_name_only_public_ones_are_tried(servers):
    server, inside = servers
    server.answer = lambda call: says(b"hello")
    names = Names({"blog.example": [[INSIDE, "127.0.0.1"]]})
    answer = await outside_of(names).get(f"http://blog.example:{server.port}/", ANYTHING, deadline=soon())
    assert answer.body == b"hello"
    assert inside.connections == 0


async def test_ports_of_other_services_are_not_contacted(servers):
    server, _ = servers
    with pytest.raises(OutsideRefused):
        await outside_of(allowed=()).get(f"http://1.1.1.1:{server.port}/", ANYTHING, deadline=soon())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_the_inside_is_not_followed(servers, status):
    server, inside = servers
    server.answer = lambda call: redirect(f"{inside.url}/secret", status)
    with pytest.raises(OutsideRefused, match="leads to no public address"):
        await outside_of().get(server.url, ANYTHING, deadline=soon())
    assert inside.connections == 0


async def test_a_name_that_leads_inside_at_the_second_look_up_is_not_followed(servers):
    server, inside = servers
    names = Names({"blog.example": [["127.0.0.1"], [INSIDE]]})
    server.answer = lambda call: redirect(f"http://blog.example:{inside.port}/secret")
    with pytest.raises(OutsideRefused, match="leads to no public address"):
        await outside_of(names).get(f"http://blog.example:{server.port}/", ANYTHING, deadline=soon())
    assert names.asked == ["blog.example", "blog.example"]
    assert inside.connections == 0


async def test_redirects_are_followed_a_few_times(servers):
    server, _ = servers

    def answer(call):
        steps = int(call.path.lstrip("/"))
        return redirect(f"../{steps - 1}") if steps else says(b"there")

    server.answer = answer
    answered = await outside_of().get(f"{server.url}/{MAX_REDIRECTS}", ANYTHING, deadline=soon())
    assert (answered.body, answered.url) == (b"there", f"{server.url}/0")
    with pytest.raises(OutsideRefused, match="redirects too often"):
        await outside_of().get(f"{server.url}/{MAX_REDIRECTS + 1}", ANYTHING, deadline=soon())


@pytest.mark.parametrize(
    "location", ["ftp://blog.example/", "file:///etc/passwd", "http://a:b@blog.example/", "http://a:99999/"]
)
async def test_a_redirect_to_what_is_no_web_address_is_refused(servers, location):
    server, _ = servers
    server.answer = lambda call: redirect(location)
    with pytest.raises(OutsideRefused):
        await outside_of().get(server.url, ANYTHING, deadline=soon())
    assert server.count == 1


async def test_hosts_of_the_site_are_exempt_but_not_what_they_redirect_to(servers):
    _, inside = servers
    inside.answer = lambda call: says(b"hello")
    names = Names({"intranet.example": [[INSIDE]], "other.example": [[INSIDE]]})
    outside = outside_of(names, allowed=())
    hosts = (f"intranet.example:{inside.port}",)
    url = f"http://intranet.example:{inside.port}/"
    assert (await outside.get(url, ANYTHING, deadline=soon(), hosts=hosts)).body == b"hello"
    for others in ((), ("blog.example",)):
        with pytest.raises(OutsideRefused):
            await outside.get(url, ANYTHING, deadline=soon(), hosts=others)
    inside.answer = lambda call: redirect(f"http://other.example:{inside.port}/")
    with pytest.raises(OutsideRefused):
        await outside.get(url, ANYTHING, deadline=soon(), hosts=hosts)
    assert inside.connections == 2


async def test_environment_proxies_play_no_part(servers, monkeypatch):
    server, inside = servers
    server.answer = lambda call: says(b"hello")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, inside.url)
    assert (await outside_of().get(server.url, ANYTHING, deadline=soon())).body == b"hello"
    assert inside.connections == 0


async def test_a_body_of_a_byte_at_a_time_ends_at_the_deadline(servers):
    server, _ = servers
    server.answer = lambda call: Response(body=b"x" * 1000, drip_s=0.02)
    began = CLOCK.steady()
    with pytest.raises(OutsideFailed, match="in time"):
        await outside_of().get(server.url, ANYTHING, deadline=soon(0.5))
    # What it would take without a deadline: a byte of head and body every 20 ms.
    assert CLOCK.steady() - began < 15


async def test_a_name_server_that_does_not_answer_ends_at_the_deadline():
    async def silent(host, port):
        await asyncio.Event().wait()

    with pytest.raises(OutsideFailed, match="in time") as caught:
        await outside_of(silent).get("http://blog.example/", ANYTHING, deadline=soon(0.1))
    assert not caught.value.sent


async def test_more_than_fits_is_refused_before_it_is_read(servers):
    server, _ = servers
    server.answer = lambda call: says(b"x" * 1001)
    with pytest.raises(OutsideRefused, match="more than"):
        await outside_of().get(server.url, ANYTHING, deadline=soon())
    # Its length is believed: not a byte of it is waited for.
    server.answer = lambda call: Response(body=b"x", headers={"Content-Length": "999999999999"})
    with pytest.raises(OutsideRefused, match="more than"):
        await outside_of().get(server.url, ANYTHING, deadline=soon())


async def test_a_body_without_end_is_left_when_it_is_too_large(servers):
    server, _ = servers
    server.answer = lambda call: Response(body=b"x" * 100)
    server.unsized = True
    with pytest.raises(OutsideRefused, match="more than"):
        await outside_of().get(server.url, ANYTHING, deadline=soon())


async def test_the_beginning_will_do_where_it_is_said_to(servers):
    server, _ = servers
    server.answer = lambda call: says(b"x" * 5000)
    wanted = Wanted(kinds=(), most_bytes=1000, cut=True)
    answer = await outside_of().get(server.url, wanted, deadline=soon())
    assert (answer.body, answer.whole) == (b"x" * 1000, False)


@pytest.mark.parametrize(("compress", "name"), [(gzip.compress, "gzip"), (zlib.compress, "deflate")])
async def test_what_is_compressed_unasked_counts_as_what_it_unpacks_to(servers, compress, name):
    server, _ = servers
    server.answer = lambda call: says(compress(b"x" * 1000), **{"Content-Encoding": name})
    assert (await outside_of().get(server.url, ANYTHING, deadline=soon())).body == b"x" * 1000
    bomb = compress(b"x" * 50_000_000)
    server.answer = lambda call: says(bomb, **{"Content-Encoding": name})
    tracemalloc.start()
    with pytest.raises(OutsideRefused, match="more than"):
        await outside_of().get(server.url, Wanted(kinds=(), most_bytes=100_000), deadline=soon())
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 10_000_000
    server.answer = lambda call: says(b"no such thing", **{"Content-Encoding": name})
    with pytest.raises(OutsideRefused, match="damaged"):
        await outside_of().get(server.url, ANYTHING, deadline=soon())


async def test_an_encoding_that_nobody_asked_for_is_refused(servers):
    server, _ = servers
    server.answer = lambda call: says(b"hello", **{"Content-Encoding": "br"})
    with pytest.raises(OutsideRefused, match="encoding"):
        await outside_of().get(server.url, ANYTHING, deadline=soon())


async def test_another_kind_than_was_asked_for_is_refused(servers):
    server, _ = servers
    wanted = Wanted(kinds=("text/html", "image/"), most_bytes=1000)
    for kind in ("text/html; charset=utf-8", "TEXT/HTML", "image/webp", ""):
        server.answer = lambda call, kind=kind: says(b"hello", kind)
        assert (await outside_of().get(server.url, wanted, deadline=soon())).body == b"hello"
    server.answer = lambda call: says(b"hello", "application/pdf")
    with pytest.raises(OutsideRefused, match="application/pdf"):
        await outside_of().get(server.url, wanted, deadline=soon())
    assert server.requests[0].headers["accept"] == "text/html, image/*"


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, OutsideRefused), (403, OutsideRefused), (204, OutsideRefused), (304, OutsideRefused)]
    + [(status, OutsideFailed) for status in (408, 429, 500, 503)],
)
async def test_what_is_no_success_is_told_apart_by_whether_to_try_again(servers, status, error):
    server, _ = servers
    server.answer = lambda call: Response(status=status, body=b"", headers={"Retry-After": "7"})
    with pytest.raises(error, match=str(status)) as caught:
        await outside_of().get(server.url, ANYTHING, deadline=soon())
    if status in (429, 503):
        assert caught.value.retry_after_s == 7


async def test_no_answer_may_be_tried_again(servers):
    server, _ = servers
    server.answer = lambda call: Response(close=True)
    with pytest.raises(OutsideFailed) as caught:
        await outside_of().get(server.url, ANYTHING, deadline=soon())
    assert caught.value.sent
    await server.stop()
    with pytest.raises(OutsideFailed) as caught:
        await outside_of().get(server.url, ANYTHING, deadline=soon())
    assert not caught.value.sent


async def test_a_name_that_there_is_not_is_not_asked_for_again():
    with pytest.raises(OutsideRefused, match="there is no host"):
        await outside_of().get("http://unknown.example/", ANYTHING, deadline=soon())


@pytest.mark.parametrize(
    "url", ["", "blog.example", "ftp://a/", "http://", "http://a:b@c/", "http://a:99999/"]
)
async def test_what_is_no_web_address_is_refused(url):
    with pytest.raises(OutsideRefused):
        await outside_of().get(url, ANYTHING, deadline=soon())


@pytest.mark.parametrize("status", [200, 204, 307, 410, 429, 500])
async def test_a_post_is_sent_once_and_its_status_told(servers, status):
    server, inside = servers
    server.answer = lambda call: Response(
        status=status, body=b"", headers={"Location": inside.url, "Retry-After": "9"}
    )
    answer = await outside_of().post(
        f"{server.url}/hook", b'{"a":1}', headers={"content-type": "application/json"}, deadline=soon()
    )
    assert answer.status == status
    assert answer.wait_s == (9 if status == 429 else None)
    (call,) = server.requests
    assert (call.method, call.target, call.body) == ("POST", "/hook", b'{"a":1}')
    assert call.headers["content-type"] == "application/json"
    assert inside.connections == 0


async def test_a_post_never_goes_inside(servers):
    _, inside = servers
    with pytest.raises(OutsideRefused):
        await outside_of().post(inside.url, b"{}", headers={}, deadline=soon())
    assert inside.connections == 0


async def test_a_canceled_call_leaves_no_connection(servers):
    server, _ = servers
    asked = asyncio.Event()

    def answer(call):
        asked.set()
        return Response(hang=True)

    server.answer = answer
    call = asyncio.create_task(outside_of().get(server.url, ANYTHING, deadline=soon(60)))
    await asked.wait()
    call.cancel()
    await asyncio.wait([call], timeout=20)
    assert call.cancelled()


async def test_names_are_looked_up_as_the_host_does():
    assert "127.0.0.1" in await SystemResolver()("localhost", 80)
    with pytest.raises(OSError, match=r"."):
        await SystemResolver()("no-such-name.invalid", 80)
    with pytest.raises(OSError, match="no host name"):
        await SystemResolver()("a" * 70 + ".example", 80)
