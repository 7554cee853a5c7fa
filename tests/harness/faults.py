"""A Redis that is killed, stopped, read-only, flushed, slow or full, as a test wishes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import redis

from harness.redis_servers import RedisServer, redis_server

FAULTS = ("stopped", "killed", "read-only", "flushed", "slow", "full")
_MEMORY = "maxmemory"


class Relay:
    """A way to Redis that may be slow: what is said arrives `delay_s` later, in both directions together."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.url = ""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Relay]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)  # in which connections close

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_unix_connection(self._socket_path)
        except OSError:
            writer.close()
            return
        for source, sink, delayed in ((reader, back, True), (there, writer, False)):
            task = asyncio.create_task(self._pass_on(source, sink, delayed=delayed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, delayed: bool
    ) -> None:
        try:
            while data := await source.read(65536):
                if delayed and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                sink.write(data)
        except ConnectionError:
            pass
        finally:
            sink.close()


class Faults:
    """A Redis of the test's own, and what can go wrong with it."""

    def __init__(self, server: RedisServer, relay: Relay) -> None:
        self._server = server
        self._relay = relay
        self._client = redis.Redis(unix_socket_path=str(server.socket))
        self.url = relay.url

    def begin(self, fault: str) -> None:
        """Let it be one of FAULTS."""
        match fault:
            case "stopped":
                os.kill(self._server.pid, signal.SIGSTOP)
            case "killed":
                self._server.kill()
            case "read-only":
                self._client.replicaof("127.0.0.1", 1)
            case "flushed":
                self._client.flushall()
            case "slow":
                self._relay.delay_s = 1.0
            case "full":
                self._client.config_set(_MEMORY, 1)

    def end(self, fault: str) -> None:
        """All is well again."""
        match fault:
            case "stopped":
                os.kill(self._server.pid, signal.SIGCONT)
            case "killed":
                self._server.start()
            case "read-only":
                self._client.replicaof("NO", "ONE")
            case "slow":
                self._relay.delay_s = 0.0
            case "full":
                self._client.config_set(_MEMORY, 0)


@contextlib.asynccontextmanager
async def faulty_redis() -> AsyncIterator[Faults]:
    """A server behind a relay."""
    with redis_server() as server:
        async with Relay(str(server.socket)).listening() as relay:
            yield Faults(server, relay)
