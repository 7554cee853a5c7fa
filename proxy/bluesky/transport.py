"""HTTP to the servers of the network, within a deadline that no server can stretch.

httpx's own timeouts are per read: a server that drips a byte at a time holds a request for as long as it
likes. And a request cancelled from outside leaks its place in httpcore's pool. So every read, write and
connect is clamped to the deadline of the request it serves, and nobody cancels a request.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from proxy.clock import Clock

# A request and the reads of its body happen in one task, connections are shared by many: what is being
# served is known to the task only.
_deadline: ContextVar[float] = ContextVar("deadline")

_NEVER = float("inf")


def within(deadline: float) -> dict[str, Any]:
    """The `extensions` of a request that must be over, body included, by the steady instant `deadline`."""
    return {"deadline": deadline}


class DeadlineTransport(httpx.AsyncBaseTransport):
    """An httpx transport over pools of httpcore, whose requests end at their deadline.

    Requests name it by `extensions=within(deadline)`. Raises what httpx's own transport raises, and what
    `backend`, which makes the connections, raises of its own. Environment proxies play no part.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        max_connections: int,
        connections_per_pool: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._clock = clock
        self._backend = _ClampedBackend(backend or httpcore.AnyIOBackend(), clock)
        self._ssl_context = ssl_context
        step = connections_per_pool or max_connections
        self._sizes = [min(step, max_connections - taken) for taken in range(0, max_connections, step)]
        self._pools: list[_Pool] = []
        # Whoever waits does so here, for the first connection that is free, whichever pool has it.
        self._free = asyncio.Semaphore(max_connections)

    async def warm_up(self) -> None:
        """Do beside all else what the first request would have to wait for."""
        if not self._pools:
            self._ssl_context = self._ssl_context or await asyncio.to_thread(_ssl_context)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; its deadline holds until the body of the answer has been read."""
        _deadline.set(request.extensions.get("deadline", _NEVER))
        with _translated():
            left_s = _left_s(self._clock, httpcore.PoolTimeout)
        # Loading the certificates of the world takes a while: not before there is something to ask.
        self._pools = self._pools or self._made_pools()
        try:
            async with asyncio.timeout(left_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise httpx.PoolTimeout("no connection was free before the deadline") from error
        pool = max(self._pools, key=_Pool.room)
        pool.requests += 1
        try:
            with _translated():
                response = await pool.connections.handle_async_request(self._inner(request))
        except BaseException:
            self._leave(pool)
            raise
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response, functools.partial(self._leave, pool)),
            extensions=response.extensions,
        )

    def _leave(self, pool: _Pool) -> None:
        pool.requests -= 1
        self._free.release()

    def _made_pools(self) -> list[_Pool]:
        ssl_context = self._ssl_context or _ssl_context()
        return [
            _Pool(
                httpcore.AsyncConnectionPool(
                    ssl_context=ssl_context,
                    max_connections=size,
                    max_keepalive_connections=size,
                    keepalive_expiry=30.0,
                    network_backend=self._backend,
                ),
                size,
            )
            for size in self._sizes
        ]

    def _inner(self, request: httpx.Request) -> httpcore.Request:
        left_s = _left_s(self._clock, httpcore.PoolTimeout)
        return httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions={"timeout": {"pool": left_s}},
        )

    async def aclose(self) -> None:
        """Close every connection."""
        for pool in self._pools:
            await pool.connections.aclose()


@dataclass(slots=True)
class _Pool:
    """Connections, and how many requests they have."""

    connections: httpcore.AsyncConnectionPool
    size: int
    requests: int = 0

    def room(self) -> int:
        """For how many more requests there are connections."""
        return self.size - self.requests


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response, leave: Callable[[], None]) -> None:
        self._response = response
        self._leave: Callable[[], None] | None = leave

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            async for part in self._response.aiter_stream():
                yield part

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        finally:
            if self._leave is not None:
                self._leave()
                self._leave = None


class _ClampedStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109, ARG002
        return await self._stream.read(max_bytes, _left_s(self._clock, httpcore.ReadTimeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109, ARG002
        await self._stream.write(buffer, _left_s(self._clock, httpcore.WriteTimeout))

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109, ARG002
    ) -> httpcore.AsyncNetworkStream:
        left_s = _left_s(self._clock, httpcore.ConnectTimeout)
        return _ClampedStream(await self._stream.start_tls(ssl_context, server_hostname, left_s), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _ClampedBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, backend: httpcore.AsyncNetworkBackend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109, ARG002
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        left_s = _left_s(self._clock, httpcore.ConnectTimeout)
        stream = await self._backend.connect_tcp(host, port, left_s, local_address, socket_options)
        return _ClampedStream(stream, self._clock)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


def _left_s(clock: Clock, timed_out: type[httpcore.TimeoutException]) -> float | None:
    deadline = _deadline.get()
    if deadline == _NEVER:
        return None
    left_s = deadline - clock.steady()
    if left_s <= 0:
        raise timed_out("the deadline has passed")
    return left_s


_TRANSLATIONS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.TimeoutException, httpx.ReadTimeout),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.WriteError, httpx.WriteError),
    (httpcore.NetworkError, httpx.ReadError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.ProtocolError, httpx.LocalProtocolError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for theirs, ours in _TRANSLATIONS:
            if isinstance(error, theirs):
                raise ours(str(error)) from error
        raise
