"""The listener's limits, seen from a socket: size and pace of heads and bodies, connections, draining."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket

import pytest

from harness.proxy import feed, listening_proxy
from harness.upstream import json_response
from harness.waiting import until
from harness.wire import Wire
from proxy.edge import MAX_PIPELINED, ConnectionLimits, EdgeProtocol
from proxy.web_server import web_server


async def exchange(address, data, *, then=b"", pause=None):
    """Send raw bytes, and read until the server closes or answers with a length."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def parsed(raw):
    head, _, body = raw.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    headers = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:])
    }
    return status, headers, body


def request(target, *headers, method="GET"):
    lines = [f"{method} {target} HTTP/1.1", "Host: proxy.test", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


@pytest.fixture
def quick(monkeypatch):
    """The listener's patience, shortened."""
    monkeypatch.setattr("proxy.edge.HEAD_S", 0.3)
    monkeypatch.setattr("proxy.edge.BODY_S", 0.3)
    monkeypatch.setattr("proxy.edge.SEND_S", 0.3)


async def test_an_ordinary_request(start, upstream):
    async with start() as proxy, listening_proxy(proxy) as address:
        status, headers, body = parsed(await exchange(address, request(feed())))
    assert status == 200
    assert json.loads(body)["target"] == feed()
    assert "date" in headers
    assert "server" not in headers


HEADS = {
    "one header of 100 KB": request(feed(), f"X-Large: {'x' * 100_000}"),
    "many headers": request(feed(), *(f"X-{n}: {'y' * 80}" for n in range(1000))),
    "a target of 100 KB": request(f"{feed()}&q={'z' * 100_000}"),
    "17 KB": request(feed(), f"X-Large: {'x' * 17_000}"),
    "a header of 100 KB that does not end": request(feed(), f"X-Large: {'x' * 100_000}")[:-4],
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
async def test_large_heads_are_refused(start, upstream, head):
    async with start() as proxy, listening_proxy(proxy) as address:
        raw = await exchange(address, head)
    # A client that is still sending may lose our refusal to a reset; it must get no answer to its question.
    if raw:
        status, _, body = parsed(raw)
        assert status == 431
        assert json.loads(body)["error"] == "InvalidRequest"
    assert upstream.count == 0


async def test_a_head_of_15_kb_is_answered(start, upstream):
    async with start() as proxy, listening_proxy(proxy) as address:
        status, _, _ = parsed(await exchange(address, request(feed(), f"X-Large: {'x' * 15_000}")))
    assert status == 200


async def test_a_pipeline_of_ordinary_heads_is_no_large_head(start, upstream):
    many = request(feed(), f"X: {'x' * 4000}").replace(b"Connection: close\r\n", b"") * 20
    async with start() as proxy, listening_proxy(proxy) as address:
        raw = await exchange(address, many + request(feed()))
    assert raw.count(b"HTTP/1.1 200 OK") == 21
    assert upstream.count == 1


SLOW = {
    "nothing at all": b"",
    "half a request line": b"GET /xr",
    "half a head": request(feed())[:-2],
    "half a body": request("/livez", "Content-Length: 100", method="POST") + b"x",
    "blank lines": b"\r\n\r\n",
}


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW.keys())
async def test_slow_requests_end(start, upstream, quick, data):
    async with start() as proxy, listening_proxy(proxy) as address:
        raw = await exchange(address, data)
    assert not raw or parsed(raw)[0] in (405, 408)
    assert upstream.count == 0


async def test_a_byte_at_a_time_buys_no_time(start, upstream, quick):
    async with start() as proxy, listening_proxy(proxy) as address:
        reader, writer = await asyncio.open_connection(*address)
        head = request(feed(), f"X: {'x' * 2000}")
        sent = 0
        async with asyncio.timeout(20):
            reading = asyncio.create_task(reader.read())
            while not reading.done():
                writer.write(head[sent : sent + 1])
                sent += 1
                await asyncio.sleep(0.02)  # how slowly it sends is what the test is about
        assert sent < len(head)
        raw = reading.result() if not reading.exception() else b""
        assert not raw or parsed(raw)[0] == 408
        writer.close()
    assert upstream.count == 0


async def test_a_slow_answer_is_waited_for(start, upstream, quick):
    """The timers are for what the client owes; our own slowness is not held against it."""
    upstream.delay_s = 0.8
    async with start() as proxy, listening_proxy(proxy) as address:
        status, _, _ = parsed(await exchange(address, request(feed())))
    assert status == 200


NONSENSE = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
    "no version": b"GET /xrpc\r\n\r\n",
    "bad header": b"GET /livez HTTP/1.1\r\nHost: x\r\n bad : x\r\n\r\n",
    "two lengths": b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "length and chunks": (
        b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_refused(start, upstream, data):
    async with start() as proxy, listening_proxy(proxy) as address:
        raw = await exchange(address, data)
    status, headers, body = parsed(raw)
    assert 400 <= status < 500
    assert headers["connection"] == "close"
    assert json.loads(body)["error"] in ("InvalidRequest", "NotFound")
    assert upstream.count == 0


TRICKS = [
    "/xrpc/../metrics",
    "/xrpc/%2e%2e/metrics",
    "/xrpc/..%2fmetrics",
    "/xrpc/app.bsky.feed.getAuthorFeed%2f..?actor=alice.test",
    "/xrpc/%61pp.bsky.feed.getAuthorFeed?actor=alice.test",
    "/xrpc//app.bsky.feed.getAuthorFeed?actor=alice.test",
    "//xrpc/app.bsky.feed.getAuthorFeed?actor=alice.test",
    "/XRPC/app.bsky.feed.getAuthorFeed?actor=alice.test",
    "/xrpc/app.bsky.feed.getAuthorFeed//?actor=alice.test",
    "/xrpc/app.bsky.feed.getAuthorFeed;x?actor=alice.test",
    "/xrpc",
    "/%78rpc/app.bsky.feed.getAuthorFeed?actor=alice.test",
    "http://elsewhere.example/other?actor=alice.test",
    "*",
]


@pytest.mark.parametrize("target", TRICKS)
async def test_path_tricks_reach_nothing(start, upstream, target):
    async with start() as proxy, listening_proxy(proxy) as address:
        status, _, body = parsed(await exchange(address, request(target)))
    assert 400 <= status < 500
    assert json.loads(body)["error"]
    assert upstream.count == 0


async def test_connections_are_counted_in_all(start, upstream, monkeypatch):
    monkeypatch.setattr("proxy.web_server.MAX_CONNECTIONS", 5)
    monkeypatch.setattr("proxy.web_server._FEWEST_CONNECTIONS", 5)
    async with start() as proxy, listening_proxy(proxy) as address:
        idle = [await asyncio.open_connection(*address) for _ in range(5)]
        await asyncio.sleep(0)
        status, headers, _ = parsed(await exchange(address, b""))
        assert status == 503
        assert headers["retry-after"] == "1"
        for _, writer in idle[:2]:
            writer.close()
            await writer.wait_closed()

        async def answered():
            raw = await exchange(address, request(feed()))
            return raw and parsed(raw)[0] == 200

        await until(answered)
        for _, writer in idle[2:]:
            writer.close()


def test_connections_are_counted_by_client():
    limits = ConnectionLimits(total=100, per_client=2)
    assert [limits.admit("203.0.113.1") for _ in range(3)] == [True, True, False]
    assert limits.admit("203.0.113.2")
    assert limits.admit("::ffff:203.0.113.1") is False, "the same address in other clothes"
    assert limits.admit("2001:db8::1")
    assert limits.admit("2001:db8::2")
    assert limits.admit("2001:db8:0:0:ffff::") is False, "the same /64"
    assert limits.admit("2001:db8:0:1::1")
    limits.release("203.0.113.1")
    assert limits.admit("203.0.113.1")
    for _ in range(20):
        assert limits.admit("127.0.0.1")
        assert limits.admit(None)


async def test_draining_answers_what_is_under_way(start, upstream):
    upstream.delay_s = 0.3
    async with start() as proxy:
        async with listening_proxy(proxy) as address:
            requests = [
                asyncio.create_task(exchange(address, request(feed(f"a{n}.test")))) for n in range(20)
            ]
            await until(lambda: upstream.count >= 16)
        answers = await asyncio.gather(*requests)
    assert [parsed(raw)[0] for raw in answers] == [200] * 20


async def test_a_pipeline_without_end_is_bounded(start, upstream, monkeypatch):
    """Tens of thousands of requests on one connection, nobody reading: a few are parsed, the rest waits."""
    async with start() as proxy, listening_proxy(proxy) as address:
        await proxy.get(feed())
        reader, writer = await asyncio.open_connection(*address)
        one = request(feed()).replace(b"Connection: close\r\n", b"")
        writer.write(one * 30_000)
        protocols = [
            found for found in gc.get_objects() if isinstance(found, EdgeProtocol) and found.transport
        ]
        [protocol] = [found for found in protocols if not found.transport.is_closing()]
        await until(lambda: protocol.flow.read_paused)
        for _ in range(200):
            await asyncio.sleep(0)
            assert len(protocol.pipeline) <= MAX_PIPELINED + 4096 // len(one) + 1
            assert len(protocol._held_back) <= 600_000
        # Who reads gets every answer, in order.
        answers = 0
        async with asyncio.timeout(60):
            while answers < 1000:
                answers += (await reader.read(1 << 20)).count(b"HTTP/1.1 200 OK")
        writer.transport.abort()
    assert upstream.count == 1


LARGE = json_response({"feed": ["x" * 1000] * 1900})  # four are more than kernels hold for a connection


async def unread(address, *chunks, window_bytes=4096):
    """The socket of a client that has sent `chunks` and not read yet."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    client.setblocking(False)  # noqa: FBT003
    await asyncio.get_running_loop().sock_connect(client, address)
    for data in chunks:
        await asyncio.get_running_loop().sock_sendall(client, data)
        await asyncio.sleep(0.02)  # so that each is a read of its own
    return client


@pytest.mark.parametrize("hits", [0, 1], ids=["the ordinary way", "the short way"])
async def test_who_reads_nothing_is_not_waited_for(start, upstream, quick, monkeypatch, hits):
    limits = ConnectionLimits(total=100, per_client=100)
    monkeypatch.setattr("proxy.web_server._connection_limits", lambda _settings: limits)
    upstream.answer = lambda _request: LARGE
    async with start() as proxy, listening_proxy(proxy) as address:
        for _ in range(hits + 1):
            await proxy.get(feed())
        one = request(feed()).replace(b"Connection: close\r\n", b"")
        with contextlib.ExitStack() as stuck:
            for chunks in ([one] * 4, [one * 4], [one * 3 + request(feed())]):
                stuck.enter_context(await unread(address, *chunks))
            await until(lambda: limits.open == 3)
            await until(lambda: limits.open == 0, deadline_s=20)


@pytest.mark.parametrize("fields", ["", "Connection: close\r\n"], ids=["idle", "about to be closed"])
async def test_who_leaves_a_little_unread_is_not_waited_for(start, upstream, quick, fields):
    async with start() as proxy:
        wire = Wire(web_server(proxy.web.app, proxy.settings), reads=False)
        wire.protocol.timeout_keep_alive = 0.05
        await wire.send(f"GET {feed()} HTTP/1.1\r\nHost: p\r\n{fields}\r\n".encode())
        assert not wire.paused
        await until(lambda: wire.aborted)


async def test_who_reads_slowly_is_waited_for(start, upstream, monkeypatch):
    monkeypatch.setattr("proxy.edge.SEND_S", 1.5)
    upstream.answer = lambda _request: LARGE
    loop = asyncio.get_running_loop()
    async with start() as proxy, listening_proxy(proxy) as address:
        one = request(feed()).replace(b"Connection: close\r\n", b"")
        with await unread(address, one, one, one, request(feed()), window_bytes=1 << 20) as client:
            began_at, length = loop.time(), 0
            async with asyncio.timeout(60):
                while data := await loop.sock_recv(client, 32_768):
                    length += len(data)
                    await asyncio.sleep(0.02)  # how slowly it reads is what the test is about
    assert length > 4 * 1_900_000
    assert loop.time() - began_at > 2 * 1.5


async def test_answers_that_are_owed_go_out_before_a_refusal(start, upstream):
    upstream.delay_s = 0.1
    async with start() as proxy, listening_proxy(proxy) as address:
        good = request(feed()).replace(b"Connection: close\r\n", b"")
        raw = await exchange(address, good + b"\x00nonsense\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 200 OK")
    assert raw.count(b"HTTP/1.1") == 1


async def test_the_probes_say_which_methods_they_know(start, upstream):
    async with start() as proxy:
        answer = await proxy.client.post("/livez")
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]


async def test_a_broken_body_is_not_answered_in_anothers_name(start, upstream):
    upstream.delay_s = 0.2
    chunked = b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"
    async with start() as proxy, listening_proxy(proxy) as address:
        good = request(feed()).replace(b"Connection: close\r\n", b"")
        raw = await exchange(address, good + chunked)
        assert raw.startswith(b"HTTP/1.1 200 OK")
        alone = await exchange(address, chunked)
        assert alone.count(b"HTTP/1.1") == 1


async def test_who_is_held_back_is_not_called_slow(start, upstream, quick):
    upstream.delay_s = 0.1
    async with start() as proxy, listening_proxy(proxy) as address:
        many = [request(feed(f"a{n}.test", q="x" * 300)) for n in range(20)]
        pipeline = b"".join(one.replace(b"Connection: close\r\n", b"") for one in many[:-1]) + many[-1]
        raw = await exchange(address, pipeline)
    assert raw.count(b"HTTP/1.1 200 OK") == 20


async def test_a_refused_expectation_ends_the_connection(start, upstream):
    asking = b"POST /xrpc/app.bsky.actor.getProfile HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    async with start() as proxy, listening_proxy(proxy) as address:
        raw = await exchange(address, asking + b"Expect: 100-continue\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 405")
    assert b"connection: close" in raw.lower()
