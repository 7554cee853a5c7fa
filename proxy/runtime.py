"""The processes that the supervisor starts: their roles (web, worker), signals and ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from proxy.background import running
from proxy.clock import Clock, SystemClock
from proxy.composition.reading import Reading, reading, telling_of_changes
from proxy.composition.routes import admin_routes, widget_routes
from proxy.composition.syndicating import Syndication, syndicating
from proxy.control import ControlChannel, receive_beginning
from proxy.edge import EdgeConfig
from proxy.errors import FeedproxyError, UsageError
from proxy.observing import Process, observing, spans_if_installed
from proxy.ops.families import LAYOUT
from proxy.resilience.admin_token import AdminToken
from proxy.settings import Settings, load_settings, load_tenants
from proxy.store.link import PATIENCE_S
from proxy.syndication.accounts import secrets_of
from proxy.tally import Board, Tally
from proxy.telemetry import Redactor, configure_logging, get_logger
from proxy.tenants import Tenants
from proxy.tracing import TracedApp
from proxy.web_server import WebServer, web_server

_GIVE_UP_S: Final = 5.0

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class WebApp:
    """A web process's application, and what may be done to it while it runs.

    `ops` is the one for OPS_LISTEN.
    """

    app: ASGIApp
    ops: ASGIApp
    config: Path | None
    tally: Tally
    redactor: Redactor
    reading: Reading
    syndication: Syndication

    async def reload(self) -> None:
        """Read feedproxy.toml and password files again."""
        tenants = await _reloaded(self.config, self.syndication, self.redactor)
        if tenants is not None:
            self.reading.rules.current = tenants.feeds

    def watch(self, server: WebServer) -> None:
        """Count the connections of `server`."""
        if isinstance(server.config, EdgeConfig):
            limits = server.config.limits
            self.tally.gauge("feedproxy_connections", read=lambda: limits.open)

    def give_up(self) -> None:
        """Answer everyone who still waits for the upstream with what there is."""
        self.reading.service.give_up()


@contextlib.asynccontextmanager
async def web_app(
    settings: Settings, clock: Clock, process: Process, *, patience_s: float = PATIENCE_S
) -> AsyncIterator[WebApp]:
    """The application of a web process, open for as long as the block lasts. `patience_s`: see `reading`."""
    instruments, token = process.instruments(clock), AdminToken(settings.admin_token, clock)
    async with (
        reading(settings, clock, instruments, patience_s=patience_s) as feeds,
        syndicating(settings, clock, os.environ, instruments, feeds.changed) as posts,
        observing(settings, clock, process, instruments, token, posts=posts, feeds=feeds) as observed,
    ):
        app = _application(
            [
                *observed.routes(),
                feeds.route,
                *admin_routes(settings, clock, feeds, posts, token),
                *posts.routes(settings, clock, process.stopping),
                *widget_routes(settings, feeds),
            ]
        )
        yield WebApp(
            app=TracedApp(app, process.spans),
            ops=_application(observed.own_routes()),
            config=settings.config,
            tally=instruments.tally,
            redactor=process.redactor,
            reading=feeds,
            syndication=posts,
        )


def _application(routes: Sequence[BaseRoute]) -> Starlette:
    app = Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_found})
    app.router.redirect_slashes = False  # what does not exist is said not to exist
    return app


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
    async with running(reloading=heed):
        yield


async def _reloaded(config: Path | None, syndication: Syndication, redactor: Redactor) -> Tenants | None:
    """feedproxy.toml as it is now. What is wrong with it is logged, and the old one stays in force."""
    try:
        tenants = load_tenants(config)
        redactor.learn(secrets_of(tenants, os.environ))
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


async def run_web(
    settings: Settings, process: Process, listener: socket.socket, ops_listener: socket.socket | None
) -> None:
    """Serve from `listener` until SIGTERM, and what is for operators alone from `ops_listener`."""
    async with web_app(settings, SystemClock(), process) as web:
        server = web_server(web.app, settings, web.reading.hits.answer)
        web.watch(server)
        ops_server = None if ops_listener is None else web_server(web.ops, settings)
        loop = asyncio.get_running_loop()

        def drain() -> None:
            process.stopping.set()  # long polls and event streams end first
            server.should_exit = True
            # Whoever waits for a slow upstream is answered before the connections are cut.
            loop.call_later(_GIVE_UP_S, web.give_up)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain)
        announcing = asyncio.create_task(_announce(server, process.control, web.reading.warm_up))
        # What is there now stays. To look through all of it for garbage takes 0.1 s, in the middle of a rush.
        gc.freeze()
        try:
            async with _reloading(web.reload), _serving_beside(ops_server, ops_listener):
                await server.serve(sockets=[listener])
        finally:
            announcing.cancel()
            await asyncio.wait([announcing])


@contextlib.asynccontextmanager
async def _serving_beside(server: WebServer | None, listener: socket.socket | None) -> AsyncIterator[None]:
    """`server` at work for as long as the block lasts."""
    if server is None or listener is None:
        yield
        return
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="operators' listener")
    try:
        yield
    finally:
        server.should_exit = True
        await serving


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
        try:
            await warm_up()
        except Exception:  # noqa: BLE001  (who needs it will try again, and say what is wrong)
            _log.exception("warm_up_failed")
    await control.wait_closed()
    # Nobody is left to restart or stop this process, nor to look after its store.
    os._exit(1)


async def run_worker(settings: Settings, process: Process, listener: socket.socket | None) -> None:
    """Work off the queue until SIGTERM; what is in flight then finishes or goes back.

    Probes and metrics are served from `listener`.
    """
    clock = SystemClock()
    instruments, token = process.instruments(clock), AdminToken(settings.admin_token, clock)
    async with (
        telling_of_changes(settings, clock) as changed,
        syndicating(settings, clock, os.environ, instruments, changed) as posts,
        observing(settings, clock, process, instruments, token, posts=posts) as observed,
    ):
        worker = posts.worker(settings, clock)
        server = None
        if listener is not None:
            server = web_server(_application(observed.worker_routes()), settings)
            _log.info("listening", port=listener.getsockname()[1], pid=os.getpid())
        loop = asyncio.get_running_loop()

        async def reload() -> None:
            if await _reloaded(settings.config, posts, process.redactor) is not None:
                worker.reload()

        def stop() -> None:
            process.stopping.set()
            worker.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        watching = asyncio.create_task(_announce(None, process.control))
        try:
            async with _reloading(reload), _serving_beside(server, listener):
                await posts.book.current.warm()
                await worker.run()
        finally:
            watching.cancel()
            await asyncio.wait([watching])


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What a child process is given: file descriptors, and the number of its place on the board."""

    role: Literal["web", "worker"]
    listen_fd: int | None = None
    ops_fd: int | None = None
    control_fd: int | None = None
    tally_fd: int | None = None
    place: int = 0


async def _run(settings: Settings, handed: Handed, redactor: Redactor) -> None:
    listener, ops_listener = _listener(handed.listen_fd), _listener(handed.ops_fd)
    async with contextlib.AsyncExitStack() as stack:
        control = None
        if handed.control_fd is not None:
            control = await stack.enter_async_context(ControlChannel(handed.control_fd))
        spans = spans_if_installed(handed.role, os.environ)
        stack.callback(spans.close)
        process = Process(role=handed.role, control=control, spans=spans, redactor=redactor)
        if handed.tally_fd is not None:
            process.board, process.place = Board(LAYOUT, handed.tally_fd), handed.place
        if handed.role == "worker":
            await run_worker(settings, process, listener)
        elif listener is not None:
            await run_web(settings, process, listener, ops_listener)


def _listener(fd: int | None) -> socket.socket | None:
    if fd is None:
        return None
    listener = socket.socket(fileno=fd)
    listener.setblocking(False)  # noqa: FBT003
    return listener


def main(argv: Sequence[str]) -> int:
    """Entry point of a child process: ROLE --control-fd=N. Returns the exit code.

    Everything else it is told over its control channel; 0 when the supervisor leaves before that.
    """
    role: Literal["web", "worker"] = "worker" if argv[0] == "worker" else "web"
    control = int(argv[1].removeprefix("--control-fd="))
    told = receive_beginning(control)
    if told is None:
        return 0
    os.environ.update(told.environ)
    listen, ops, tally = map(told.fds.get, ("listen", "ops", "tally"))
    handed = Handed(
        role=role, listen_fd=listen, ops_fd=ops, control_fd=control, tally_fd=tally, place=told.place
    )
    return run(handed)


def run(handed: Handed) -> int:
    """Be such a process until it ends. Returns the exit code."""
    try:
        settings = load_settings(os.environ)
        redactor = configure_logging(settings, role=handed.role)
        redactor.learn(secrets_of(settings.tenants, os.environ))
        uvloop.run(_run(settings, handed, redactor))
    except FeedproxyError as error:
        sys.stderr.write(f"feedproxy: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0
