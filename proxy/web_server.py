"""The HTTP server of a process: its limits, how it stops, and how it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from proxy.crowd import ConnectionLimits
from proxy.edge import EdgeConfig
from proxy.settings import Settings
from proxy.short_cut import ShortCut, ShortCutConfig

MAX_CONNECTIONS: Final = 10_000
MAX_CONNECTIONS_PER_CLIENT: Final = 100
_FEWEST_CONNECTIONS: Final = 16
# Descriptors for everything that is not a client: upstream, store, files.
_RESERVED_FILES: Final = 128
KEEP_ALIVE_S: Final = 30
_DRAIN_S: Final = 7
_LAST_CALL_S: Final = 0.5


class WebServer(uvicorn.Server):
    """uvicorn's server: told when to stop by us alone, and telling when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours to handle."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain. Connections that the kernel has accepted for us are answered like all others, not reset."""
        loop = asyncio.get_running_loop()
        poll = select.poll()
        for listener in sockets or ():
            poll.register(listener, select.POLLIN)
        last_call_at = loop.time() + _LAST_CALL_S
        while poll.poll(0) and loop.time() < last_call_at:  # noqa: ASYNC110 - no event tells of the last one
            await asyncio.sleep(0)  # the loop accepts one at a turn
        await super().shutdown(sockets)


def _connection_limits(settings: Settings) -> ConnectionLimits:
    """Limits that leave this process descriptors for everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - _RESERVED_FILES
    return ConnectionLimits(
        total=max(_FEWEST_CONNECTIONS, min(MAX_CONNECTIONS, files)),
        per_client=MAX_CONNECTIONS_PER_CLIENT,
        trusted=settings.trusted_proxies,
    )


def web_server(app: ASGIApp, settings: Settings, short_cut: ShortCut | None = None) -> WebServer:
    """The HTTP server of a web process."""
    options: dict[str, Any] = {
        "limits": _connection_limits(settings),
        "any_origin": "*" in settings.cors_origins,
        "lifespan": "off",
        "ws": "none",
        "log_config": None,
        "access_log": settings.access_log,
        "proxy_headers": False,
        "server_header": False,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": _DRAIN_S,
    }
    if short_cut is None or settings.access_log:  # which is to see every request
        return WebServer(EdgeConfig(app, **options))
    return WebServer(ShortCutConfig(app, short_cut=short_cut, **options))
