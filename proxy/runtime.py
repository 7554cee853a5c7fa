"""The processes that the supervisor starts: their roles (web, worker), signals and ends."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from proxy.clock import Clock, SystemClock
from proxy.composition import (
    Reading,
    Syndication,
    admin_routes,
    reading,
    syndicating,
    widget_routes,
)
from proxy.control import ControlChannel
from proxy.edge import ConnectionLimits, EdgeConfig, ShortCut
from proxy.errors import FeedproxyError, UsageError
from proxy.ops.health import Finding, Health
from proxy.settings import Settings, load_settings, load_tenants
from proxy.store.link import PATIENCE_S
from proxy.telemetry import configure_logging, get_logger
from proxy.tenants import Tenants

MAX_CONNECTIONS: Final = 10_000
MAX_CONNECTIONS_PER_CLIENT: Final = 100
_FEWEST_CONNECTIONS: Final = 16
# Descriptors for everything that is not a client: upstream, store, files.
_RESERVED_FILES: Final = 128
_KEEP_ALIVE_S: Final = 30
_DRAIN_S: Final = 7
_GIVE_UP_S: Final = 5.0
_LAST_CALL_S: Final = 0.5

_log = get_logger()


@dataclass(slots=True, kw_only=True)
class Process:
    """What this process is doing, for the probes."""

    control: ControlChannel | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def ready(self) -> bool:
        """Whether requests may come: all web processes of the host are up, and none is to go."""
        return not self.stopping.is_set() and (self.control is None or self.control.complete)

    def findings(self) -> Iterator[Finding]:
        """What the supervisor has told."""
        if self.control is not None and self.control.incidents:
            yield Finding(
                "store_data",
                "warn",
                "Stored data was damaged and has been cut back to what is sound. Check the disk; delete the "
                "copy of the damaged files once it is of no more use. This warning ends with the next start. "
                + " | ".join(self.control.incidents),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WebApp:
    """A web process's application, and what may be done to it while it runs."""

    app: ASGIApp
    config: Path | None
    reading: Reading
    syndication: Syndication

    async def reload(self) -> None:
        """Read feedproxy.toml and password files again."""
        tenants = await _reloaded(self.config, self.syndication)
        if tenants is not None:
            self.reading.rules.current = tenants.feeds

    def give_up(self) -> None:
        """Answer everyone who still waits for the upstream with what there is."""
        self.reading.service.give_up()


@contextlib.asynccontextmanager
async def web_app(
    settings: Settings, clock: Clock, process: Process, *, patience_s: float = PATIENCE_S
) -> AsyncIterator[WebApp]:
    """The application of a web process, open for as long as the block lasts. `patience_s`: see `reading`."""
    async with (
        reading(settings, clock, patience_s=patience_s) as feeds,
        syndicating(settings, clock, os.environ) as posts,
    ):
        health = Health(process.ready, lambda: (*process.findings(), *feeds.findings()))
        app = Starlette(
            routes=[
                *health.routes(),
                feeds.route,
                *admin_routes(settings, clock, feeds, posts),
                *posts.routes(settings, clock, process.stopping),
                *widget_routes(settings, feeds),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
        )
        app.router.redirect_slashes = False  # what does not exist is said not to exist
        yield WebApp(app=app, config=settings.config, reading=feeds, syndication=posts)


@contextlib.asynccontextmanager
async def _reloading(reload: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do `reload` after each SIGHUP, one at a time, for as long as the block lasts."""
    asked = asyncio.Event()

    async def heed() -> None:
        while True:
            await asked.wait()
            asked.clear()
            await reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # as `feedproxy worker` has blocked it
    heeding = asyncio.create_task(heed(), name="SIGHUP")
    try:
        yield
    finally:
        heeding.cancel()
        await asyncio.wait([heeding])


async def _reloaded(config: Path | None, syndication: Syndication) -> Tenants | None:
    """feedproxy.toml as it is now. What is wrong with it is logged, and the old one stays in force."""
    try:
        tenants = load_tenants(config)
        await syndication.book.reload(tenants, os.environ)
    except UsageError as error:
        _log.error("reload_refused", reason=str(error))
        return None
    _log.info("reloaded", trouble=list(syndication.book.current.trouble))
    return tenants


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    message = "no such page" if status == 404 else f"{request.method} is not possible here"
    return JSONResponse(
        {"error": "NotFound" if status == 404 else "InvalidRequest", "message": message},
        status_code=status,
        headers={
            **(getattr(error, "headers", None) or {}),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        },
    )


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
    return WebServer(
        EdgeConfig(
            app,
            short_cut=short_cut,
            limits=_connection_limits(settings),
            any_origin="*" in settings.cors_origins,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=settings.access_log,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_DRAIN_S,
        )
    )


async def run_web(settings: Settings, listener: socket.socket, control: ControlChannel | None) -> None:
    """Serve from `listener` until SIGTERM."""
    process = Process(control=control)
    async with web_app(settings, SystemClock(), process) as web:
        server = web_server(web.app, settings, web.reading.hits.answer)
        loop = asyncio.get_running_loop()

        def drain() -> None:
            process.stopping.set()  # long polls and event streams end first
            server.should_exit = True
            # Whoever waits for a slow upstream is answered before the connections are cut.
            loop.call_later(_GIVE_UP_S, web.give_up)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain)
        announcing = asyncio.create_task(_announce(server, control, web.reading.service.warm_up))
        try:
            async with _reloading(web.reload):
                await server.serve(sockets=[listener])
        finally:
            announcing.cancel()
            await asyncio.wait([announcing])


async def _announce(
    server: WebServer | None,
    control: ControlChannel | None,
    warm_up: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Tell the supervisor when this process is up, and leave when the supervisor is gone."""
    if control is None:
        return
    if server is not None:
        await server.listening.wait()
    await control.send_ready()
    if warm_up is not None:
        await warm_up()
    await control.wait_closed()
    # Nobody is left to restart or stop this process, nor to look after its store.
    os._exit(1)


async def run_worker(settings: Settings, control: ControlChannel | None) -> None:
    """Work off the queue until SIGTERM; what is in flight then finishes or goes back."""
    clock = SystemClock()
    async with syndicating(settings, clock, os.environ) as posts:
        worker = posts.worker(settings, clock)
        loop = asyncio.get_running_loop()

        async def reload() -> None:
            if await _reloaded(settings.config, posts) is not None:
                worker.reload()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        watching = asyncio.create_task(_announce(None, control))
        try:
            async with _reloading(reload):
                await posts.book.current.warm()
                await worker.run()
        finally:
            watching.cancel()
            await asyncio.wait([watching])


async def _worker(settings: Settings, control_fd: int | None) -> None:
    if control_fd is None:
        await run_worker(settings, None)
        return
    async with ControlChannel(control_fd) as control:
        await run_worker(settings, control)


async def _web(settings: Settings, listen_fd: int, control_fd: int | None) -> None:
    listener = socket.socket(fileno=listen_fd)
    listener.setblocking(False)  # noqa: FBT003
    if control_fd is None:
        await run_web(settings, listener, None)
        return
    async with ControlChannel(control_fd) as control:
        await run_web(settings, listener, control)


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of a child process; its options come from the supervisor. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="proxy.runtime")
    parser.add_argument("role", choices=["web", "worker"])
    parser.add_argument("--listen-fd", type=int)
    parser.add_argument("--control-fd", type=int)
    options = parser.parse_args(None if argv is None else list(argv))
    try:
        settings = load_settings(os.environ)
        configure_logging(settings, role=options.role)
        if options.role == "worker":
            uvloop.run(_worker(settings, options.control_fd))
        else:
            uvloop.run(_web(settings, options.listen_fd, options.control_fd))
    except FeedproxyError as error:
        sys.stderr.write(f"feedproxy: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
