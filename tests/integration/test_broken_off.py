"""What is broken off in the middle: nobody waits for ever, and work in the background begins anew."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct

import pytest
import redis
import uvloop
from pydantic import SecretStr
from redis.exceptions import ConnectionError as RedisConnectionError

from harness.redis_servers import redis_server
from harness.waiting import until
from proxy.background import running
from proxy.clock import SystemClock
from proxy.errors import StoreUnavailable
from proxy.store import subscription
from proxy.store.calls import connection_to
from proxy.store.connection import connect
from proxy.store.queue_store import QueueStore, connect_queue
from proxy.store.scripts import Script, script
from proxy.store.servers import servers_of

LOOK = script("look_entry")
ANSWER = Script("answer", "return 1", hashlib.sha1(b"return 1").hexdigest())


@contextlib.asynccontextmanager
async def hanging_up():
    """A server that agrees to everything, and resets each connection when `hang_up` is set."""
    hang_up = asyncio.Event()

    async def agree(reader, writer):
        while said := await reader.read(4096):
            writer.write(b"+OK\r\n" * said.count(b"*"))

    async def serve(reader, writer):
        agreeing = asyncio.create_task(agree(reader, writer))
        await hang_up.wait()
        agreeing.cancel()
        # At once and without a farewell.
        reset = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", hang_up
    finally:
        hang_up.set()
        server.close()
        await server.wait_closed()


def test_a_connection_that_was_closed_is_told_as_such():
    """By the loop that processes run on, which has an error of its own for it."""

    async def scenario():
        async with hanging_up() as (url, hang_up):
            servers = servers_of(SecretStr(url), SystemClock(), timeout_s=5)
            async with connection_to(servers, "key") as connection:
                hang_up.set()
                await until(connection._writer.transport.is_closing)
                with pytest.raises(RedisConnectionError):
                    await connection.send_command("PING")
            await servers.aclose()

    uvloop.run(scenario())


@pytest.mark.parametrize("agrees", [True, False], ids=["there", "away"])
def test_who_listens_ends_when_cancelled(agrees, tmp_path):
    """In whichever turn of the loop, of both kinds of loop, and whatever happens to the connection then."""

    async def listen(servers):
        with contextlib.suppress(StoreUnavailable):
            async for _ in subscription.listen(servers, "news"):
                pass
        await asyncio.Event().wait()

    async def scenario():
        async with hanging_up() as (url, _):
            servers = servers_of(
                SecretStr(url if agrees else f"unix://{tmp_path}/none"), SystemClock(), timeout_s=5
            )
            for turns in range(40):
                listening = asyncio.create_task(listen(servers))
                for _ in range(turns):
                    await asyncio.sleep(0)
                listening.cancel()
                await asyncio.wait([listening], timeout=5)
                assert listening.cancelled(), f"cancelled after {turns} turns"
            await servers.aclose()

    asyncio.run(scenario())
    uvloop.run(scenario())


def test_a_store_that_hangs_up_is_away():
    async def scenario():
        async with hanging_up() as (url, hang_up):
            hang_up.set()
            store = connect_queue(SecretStr(url), SystemClock())
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await store.run(LOOK, "key", [])
            await store.aclose()

    uvloop.run(scenario())


async def test_who_asks_is_answered_though_something_breaks_that_never_should(capsys):
    class Broken:
        async def pool_of(self, key):
            raise ZeroDivisionError(key)

        def doubt(self):
            pass

        async def aclose(self):
            pass

    store = QueueStore(Broken(), SystemClock())
    with pytest.raises(StoreUnavailable):
        await store.run(LOOK, "key", [])
    await store.aclose()
    assert "ZeroDivisionError" in capsys.readouterr().out


async def test_work_that_crashed_begins_anew():
    began = []

    async def work():
        began.append(True)
        if len(began) == 1:
            raise ZeroDivisionError
        await asyncio.Event().wait()

    async with running(work=work):
        await until(lambda: len(began) == 2)


async def test_a_connection_lost_under_many_calls_is_one_failure():
    """The store is not left alone for it: whoever asks next is answered."""
    with redis_server() as server, redis.Redis.from_url(server.url) as raw:
        store = connect(SecretStr(server.url), SystemClock())
        assert await store.run(ANSWER, ["k"], []) == 1
        for _ in range(3):
            calls = [asyncio.create_task(store.run(ANSWER, ["k"], [])) for _ in range(20)]
            await asyncio.sleep(0)  # they wait for their batch
            raw.client_kill_filter(_type="normal", skipme=True)
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(answer) for answer in answers} == {StoreUnavailable}
            assert store.reachable
            assert await store.run(ANSWER, ["k"], []) == 1
        await store.aclose()
