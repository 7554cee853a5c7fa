"""Small pools of connections to one upstream: who waits, what is used again, what failures leave."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest

from harness.waiting import until
from proxy.bluesky.transport import DeadlineTransport, within
from proxy.clock import SystemClock

SIZES = [1, 8, 9, 20]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
CLOCK = SystemClock()


class Upstream:
    """Counts its connections; what a path asks for happens."""

    def __init__(self):
        self.url = ""
        self.made = 0
        self.open = set()
        self.most = 0
        self.asked = Counter()
        self.places = asyncio.Semaphore(0)  # so many of /slow are answered
        self.tasks = set()

    async def serve(self, reader, writer):
        task = asyncio.current_task()
        self.tasks.add(task)
        self.made += 1
        self.open.add(writer)
        self.most = max(self.most, len(self.open))
        try:
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
                self.asked[path] += 1
                if path in (b"/breaks_off", b"/drips"):
                    writer.write(OK + b"{")
                    await writer.drain()
                if path in (b"/silent", b"/drips"):
                    await reader.read()  # until the client has gone
                if path in (b"/hangs_up", b"/breaks_off", b"/silent", b"/drips"):
                    return
                if path == b"/slow":
                    await self.places.acquire()
                writer.write(OK + b"{}")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open.discard(writer)
            writer.close()
            self.tasks.discard(task)


@asynccontextmanager
async def pools_of(size):
    """A transport with so many connections in pools of eight, and the upstream it speaks to."""
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    upstream.url = f"http://{host}:{port}"
    transport = DeadlineTransport(CLOCK, max_connections=size, connections_per_pool=8)
    try:
        yield transport, upstream
    finally:
        server.close()
        await transport.aclose()
        for _ in upstream.open:
            upstream.places.release()
        # It closes what it has opened.
        await until(lambda: not upstream.open)
        await asyncio.gather(*upstream.tasks)


async def get(transport, upstream, path="/", *, for_s=20.0):
    request = httpx.Request("GET", f"{upstream.url}{path}", extensions=within(CLOCK.steady() + for_s))
    async with aclosing(await transport.handle_async_request(request)) as response:
        return b"".join([part async for part in response.stream])


@pytest.mark.parametrize("size", SIZES)
async def test_connections_are_used_again_and_never_too_many(size):
    async with pools_of(size) as (transport, upstream):
        for _ in range(5):
            await get(transport, upstream)
        assert upstream.made == 1
        answers = await asyncio.gather(*(get(transport, upstream) for _ in range(5 * size)))
        assert answers == 5 * size * [b"{}"]
        assert upstream.made <= size


@pytest.mark.parametrize("size", SIZES)
async def test_who_waits_gets_the_first_connection_that_is_free(size):
    """However many are slow: who came first goes on with whichever ends."""
    async with pools_of(size) as (transport, upstream):
        slow = {asyncio.create_task(get(transport, upstream, "/slow")) for _ in range(size)}
        await until(lambda: upstream.asked[b"/slow"] == size)
        waiting = [asyncio.create_task(get(transport, upstream, f"/{n}")) for n in range(5)]
        # The last of them, which is in a pool that nobody who waits would have chosen.
        upstream.places.release()
        assert await asyncio.gather(*waiting) == 5 * [b"{}"]
        done, left = await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(left), upstream.most) == (1, size - 1, size)
        for _ in left:
            upstream.places.release()
        await asyncio.gather(*slow)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/hangs_up", httpx.RemoteProtocolError),
        ("/breaks_off", httpx.RemoteProtocolError),
        ("/silent", httpx.ReadTimeout),
        ("/drips", httpx.ReadTimeout),
    ],
)
async def test_what_fails_leaves_its_place_to_others(size, path, error):
    async with pools_of(size) as (transport, upstream):
        failing = (get(transport, upstream, path, for_s=0.3) for _ in range(size))
        failed = await asyncio.gather(*failing, return_exceptions=True)
        assert {type(one) for one in failed} <= {error, httpx.ConnectTimeout}
        await until(lambda: not upstream.open)
        slow = [asyncio.create_task(get(transport, upstream, "/slow")) for _ in range(size)]
        await until(lambda: upstream.asked[b"/slow"] == size)
        for _ in slow:
            upstream.places.release()
        assert await asyncio.gather(*slow) == size * [b"{}"]
        assert upstream.most <= size


async def test_who_waits_in_vain_is_told_so_at_its_deadline():
    async with pools_of(9) as (transport, upstream):
        slow = [asyncio.create_task(get(transport, upstream, "/slow")) for _ in range(9)]
        await until(lambda: upstream.asked[b"/slow"] == 9)
        with pytest.raises(httpx.PoolTimeout):
            await get(transport, upstream, for_s=0.05)
        with pytest.raises(httpx.PoolTimeout):
            await get(transport, upstream, for_s=-1)
        upstream.places.release()
        assert await get(transport, upstream) == b"{}"
        for _ in slow:
            upstream.places.release()
        await asyncio.gather(*slow)
