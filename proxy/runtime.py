"""The only place that builds and closes things in a process. Roles: web."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Final

import httpx
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp

from proxy.bluesky.appview import AppView, RetryPolicy
from proxy.bluesky.transport import DeadlineTransport
from proxy.clock import Clock, SystemClock
from proxy.control import ControlChannel
from proxy.edge import ConnectionLimits, EdgeConfig
from proxy.errors import FeedproxyError, UsageError
from proxy.feeds.failing import FailingKeys
from proxy.feeds.fill import Caches, Filler
from proxy.feeds.headers import Manner
from proxy.feeds.held import Held
from proxy.feeds.memory import MemoryCache
from proxy.feeds.policy import Rules, policy_of
from proxy.feeds.recent import RecentSet
from proxy.feeds.routes import FeedRoutes
from proxy.feeds.service import FeedService
from proxy.feeds.shared import SharedCache
from proxy.feeds.wording import wording
from proxy.ops.health import Finding, Health
from proxy.resilience.breaker import BreakerPolicy, Phase
from proxy.resilience.gate import GatePolicy, LocalGate
from proxy.resilience.limiter import Rate
from proxy.settings import Settings, load_settings, load_tenants
from proxy.store.connection import Store, connect
from proxy.telemetry import configure_logging, get_logger
from proxy.version import VERSION

MAX_CONNECTIONS: Final = 10_000
MAX_CONNECTIONS_PER_CLIENT: Final = 100
_FEWEST_CONNECTIONS: Final = 16
# Descriptors for everything that is not a client: upstream, store, files.
_RESERVED_FILES: Final = 128
_KEEP_ALIVE_S: Final = 30
_DRAIN_S: Final = 7
_GIVE_UP_S: Final = 5.0
_LAST_CALL_S: Final = 0.5
_LANDING_S: Final = 0.5
_MAX_CURSORS: Final = 100_000

_log = get_logger()


@dataclass(slots=True, kw_only=True)
class Process:
    """What this process is doing, for the probes."""

    control: ControlChannel | None = None
    draining: bool = False

    def ready(self) -> bool:
        """Whether requests may come: all web processes of the host are up, and none is to go."""
        return not self.draining and (self.control is None or self.control.complete)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebApp:
    """A web process's application, and what may be done to it while it runs."""

    app: ASGIApp
    config: Path | None
    rules: Rules
    service: FeedService

    def reload(self) -> None:
        """Read feedproxy.toml again. What is wrong with it is logged, and the old one stays in force."""
        try:
            self.rules.current = load_tenants(self.config).feeds
        except UsageError as error:
            _log.error("reload_refused", reason=str(error))
        else:
            _log.info("reloaded", feed_rules=len(self.rules.current))


@contextlib.asynccontextmanager
async def web_app(settings: Settings, clock: Clock, process: Process) -> AsyncIterator[WebApp]:
    """Everything a web process consists of, closed at the end in the reverse order."""
    rules = Rules(settings.tenants.feeds)
    policy = policy_of(settings, rules)
    draw = random.Random()  # noqa: S311  (jitter, not secrets)
    async with contextlib.AsyncExitStack() as stack:
        store = _store(settings, clock)
        stack.push_async_callback(store.aclose)
        client = await stack.enter_async_context(_upstream_client(settings, clock))
        gate = LocalGate(_gate_policy(settings), clock)
        retry = RetryPolicy(
            attempts=settings.retry_max,
            base_s=settings.retry_base_ms / 1000,
            cap_s=settings.retry_cap_ms / 1000,
        )
        appview = AppView(client, gate, clock, retry, draw=draw)
        caches = _caches(settings, clock, store)
        filler = Filler(appview, caches, policy, clock, draw=draw)
        service = FeedService(filler, appview, caches, policy, clock)
        stack.push_async_callback(service.close, _LANDING_S)
        health = Health(process.ready, lambda: _findings(process, store, gate, caches))
        app = Starlette(
            routes=[
                *health.routes(),
                Mount("/xrpc", FeedRoutes(service, _manner(settings), clock)),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
        )
        app.router.redirect_slashes = False  # what does not exist is said not to exist
        yield WebApp(app=app, config=settings.config, rules=rules, service=service)


def _store(settings: Settings, clock: Clock) -> Store:
    url = settings.store_url
    if url is None:
        raise UsageError("FEEDPROXY_REDIS_URL is not set, and there is no embedded store in this process")
    return connect(url, clock)


def _upstream_client(settings: Settings, clock: Clock) -> httpx.AsyncClient:
    contact = f" ({settings.contact})" if settings.contact else ""
    return httpx.AsyncClient(
        base_url=settings.upstream,
        transport=DeadlineTransport(clock, max_connections=settings.upstream_concurrency),
        headers={"user-agent": f"feedproxy/{VERSION}{contact}"},
        # A cookie for one question would go along with everyone's.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        trust_env=False,
    )


def _gate_policy(settings: Settings) -> GatePolicy:
    return GatePolicy(
        # The budget is the host's; each of its web processes has a part of it.
        rate=Rate(
            per_s=settings.upstream_rps / settings.workers,
            burst=max(1, settings.upstream_burst // settings.workers),
        ),
        concurrency=max(1, settings.upstream_concurrency // settings.workers),
        breaker=BreakerPolicy(
            threshold=settings.breaker_threshold,
            cooldown_s=settings.breaker_cooldown,
            probe_s=settings.upstream_timeout,
        ),
    )


def _caches(settings: Settings, clock: Clock, store: Store) -> Caches:
    return Caches(
        memory=MemoryCache[Held](settings.memory_mb * 1024 * 1024),
        shared=SharedCache(store, clock, namespace=settings.namespace, upstream=settings.upstream),
        failing=FailingKeys(clock, longest_s=settings.negative_ttl),
        unshared=RecentSet(clock, max_items=10_000, keep_s=settings.negative_ttl),
        cursors=RecentSet(clock, max_items=_MAX_CURSORS, keep_s=settings.stale_if_error),
    )


def _manner(settings: Settings) -> Manner:
    return Manner(
        client_max_age_s=settings.client_max_age,
        stale_if_error_s=settings.stale_if_error,
        cors_origins=settings.cors_origins,
        wording=wording(settings.feed_updated_lang),
    )


def _findings(process: Process, store: Store, gate: LocalGate, caches: Caches) -> Iterator[Finding]:
    if not store.reachable:
        yield Finding(
            "store",
            "warn",
            "Redis does not answer: feeds are served from memory alone. See that it runs and is reachable.",
        )
    elif store.refusal is not None:
        yield Finding(
            "store",
            "warn",
            f"Redis refuses ({store.refusal}): feeds are not kept over a restart. See its memory and disk, and "
            "whether it is a replica.",
        )
    else:
        yield Finding("store", "pass")
    if process.control is not None and process.control.incidents:
        yield Finding(
            "store_data",
            "warn",
            "Stored data was damaged and has been cut back to what is sound. Check the disk; delete the copy "
            "of the damaged files once it is of no more use. This warning ends with the next start. "
            + " | ".join(process.control.incidents),
        )
    if gate.phase is Phase.CLOSED:
        yield Finding("upstream", "pass")
    else:
        yield Finding(
            "upstream",
            "warn",
            "The upstream has been failing; stored copies are served, and it is tried again by itself. "
            "See FEEDPROXY_UPSTREAM and the network if this lasts.",
        )
    if len(caches.unshared):
        yield Finding(
            "storability",
            "warn",
            "The upstream forbids to store some answers (no-store, private or Vary): each of their readers "
            "costs a request. See what stands between this host and the upstream.",
        )


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


def web_server(app: ASGIApp, settings: Settings) -> WebServer:
    """The HTTP server of a web process."""
    return WebServer(
        EdgeConfig(
            app,
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
        server = web_server(web.app, settings)
        loop = asyncio.get_running_loop()

        def drain() -> None:
            process.draining = True
            server.should_exit = True
            # Whoever waits for a slow upstream is answered before the connections are cut.
            loop.call_later(_GIVE_UP_S, web.service.give_up)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain)
        loop.add_signal_handler(signal.SIGHUP, web.reload)
        announcing = asyncio.create_task(_announce(server, control))
        try:
            await server.serve(sockets=[listener])
        finally:
            announcing.cancel()
            await asyncio.wait([announcing])


async def _announce(server: WebServer, control: ControlChannel | None) -> None:
    """Tell the supervisor when this process accepts connections, and leave when it is gone."""
    if control is None:
        return
    await server.listening.wait()
    await control.send_ready()
    await control.wait_closed()
    # Nobody is left to restart or stop this process, nor to look after its store.
    os._exit(1)


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
    parser.add_argument("role", choices=["web"])
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--control-fd", type=int)
    options = parser.parse_args(None if argv is None else list(argv))
    try:
        settings = load_settings(os.environ)
        configure_logging(settings, role=options.role)
        uvloop.run(_web(settings, options.listen_fd, options.control_fd))
    except FeedproxyError as error:
        sys.stderr.write(f"feedproxy: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
