"""What a process tells of itself and its host: how its reports and the routes that show them are made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from starlette.routing import BaseRoute

from proxy.admin import AdminEdge
from proxy.background import running
from proxy.clients import Trust
from proxy.clock import Clock
from proxy.composition.reading import Reading
from proxy.composition.syndicating import Syndication
from proxy.control import ControlChannel
from proxy.feeds.shared import prefix_of
from proxy.instruments import Instruments
from proxy.ops.dashboard.history import History, Moment, moment_of
from proxy.ops.dashboard.login import PATH, Login
from proxy.ops.dashboard.routes import Dashboard, NoDashboard
from proxy.ops.dashboard.scenes import Scenes
from proxy.ops.dashboard.stream import StreamPolicy, Streams
from proxy.ops.door import Door
from proxy.ops.families import LAYOUT
from proxy.ops.health import Health
from proxy.ops.reporter import ABOUT_AGAIN_S, AGAIN_S, Asked, Reporter, Sources
from proxy.ops.scrape import Scrape
from proxy.resilience.admin_token import AdminToken
from proxy.settings import Settings
from proxy.syndication.admin import QueueAdminRoutes
from proxy.syndication.standing import QueueStanding
from proxy.tally import BEAT_S, Board, new_memory
from proxy.telemetry import Redactor, get_logger
from proxy.tracing import ClosableSpans, NoSpans, Spans

_log = get_logger()


@dataclass(slots=True, kw_only=True)
class Process:
    """This process, and what it is doing. `board` is what its host's processes share, `place` its own."""

    role: Literal["web", "worker"] = "web"
    control: ControlChannel | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    board: Board = field(default_factory=lambda: Board(LAYOUT, new_memory()))
    place: int = 0
    spans: Spans = field(default_factory=NoSpans)
    redactor: Redactor = field(default_factory=Redactor)

    def ready(self) -> bool:
        """Whether requests may come: all web processes of the host are up, and none is to go."""
        return not self.stopping.is_set() and (self.control is None or self.control.complete)

    def expected(self) -> int:
        """How many web processes this host is to have."""
        return 1 if self.control is None else self.control.expected

    def incidents(self) -> tuple[str, ...]:
        """What has befallen the data of the embedded store."""
        return () if self.control is None else self.control.incidents

    def instruments(self, clock: Clock) -> Instruments:
        """What it observes itself with."""
        tally = self.board.tally(self.place)
        tally.gauge("feedproxy_processes", self.role, read=lambda: 1)
        return Instruments(tally, self.spans, clock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observatory:
    """Shows reports over HTTP: on the main listener, or on one of its own where the operator wants one."""

    process: Process
    settings: Settings
    reporter: Reporter
    token: AdminToken
    dashboard: Dashboard | NoDashboard

    def routes(self) -> list[BaseRoute]:
        """For the main listener: everything for some, or where OPS_LISTEN is set, for nobody."""
        if self.settings.ops_listen is not None:
            return self._routes(self._door(is_moved=True))
        door = self._door()
        return [*self._routes(door), *self.dashboard.routes(door)]

    def own_routes(self) -> list[BaseRoute]:
        """For a listener that is there for nothing else: everything for everybody."""
        door = self._door(is_private=True)
        return [*self._routes(door), *self.dashboard.routes(door)]

    def worker_routes(self) -> list[BaseRoute]:
        """For the listener of a worker: all but the dashboard, for some."""
        return self._routes(self._door())

    def _door(self, *, is_private: bool = False, is_moved: bool = False) -> Door:
        trust = Trust(self.settings.trusted_proxies)
        return Door(
            self.token,
            trust,
            public_url=self.settings.public_url,
            is_private=is_private,
            is_moved=is_moved,
        )

    def _routes(self, door: Door) -> list[BaseRoute]:
        health = Health(self.process.ready, self.reporter, door)
        return [*health.routes(), *Scrape(self.reporter, door).routes()]


@contextlib.asynccontextmanager
async def observing(
    settings: Settings,
    clock: Clock,
    process: Process,
    instruments: Instruments,
    token: AdminToken,
    *,
    posts: Syndication,
    feeds: Reading | None = None,
) -> AsyncIterator[Observatory]:
    """An observatory of this process, whose gauges are current, for as long as the block lasts."""
    reporter = Reporter(_sources(settings, clock, process, instruments, posts, feeds))
    history = _history(process, clock)
    is_shown = feeds is not None and token.is_set
    scenes = Scenes(
        reporter,
        history,
        posts.controls(clock),
        lambda: posts.book.current,
        clock,
        budget_per_s=settings.upstream_rps,
    )

    async def beat() -> None:
        while True:
            instruments.tally.beat(clock.steady())
            if is_shown:
                history.beat()
            await asyncio.sleep(BEAT_S)

    try:
        async with running(gauges=beat):
            yield Observatory(
                process=process,
                settings=settings,
                reporter=reporter,
                token=token,
                dashboard=_dashboard(settings, clock, process, token, scenes, posts)
                if is_shown
                else NoDashboard(),
            )
    finally:
        await scenes.close()
        await reporter.close()


def _history(process: Process, clock: Clock) -> History:
    def now() -> Moment:
        steady_s = clock.steady()
        return moment_of(process.board.totals(steady_s), at=clock.wall(), steady_s=steady_s)

    return History(now, clock.steady)


def _dashboard(
    settings: Settings,
    clock: Clock,
    process: Process,
    token: AdminToken,
    scenes: Scenes,
    posts: Syndication,
) -> Dashboard:
    login = Login(token, Trust(settings.trusted_proxies), clock, public_url=settings.public_url)
    queue = QueueAdminRoutes(posts.controls(clock), lambda: posts.book.current, clock, AdminEdge(login.check))
    streams = Streams(scenes.tell, clock, process.stopping, StreamPolicy())
    return Dashboard(login, streams, queue.routes(f"{PATH}/api"))


def _sources(
    settings: Settings,
    clock: Clock,
    process: Process,
    instruments: Instruments,
    posts: Syndication,
    feeds: Reading | None,
) -> Sources:
    async def standing() -> QueueStanding:
        return await posts.queue.standing(posts.book.current.accounts)

    def accounts() -> tuple[Sequence[str], Sequence[str]]:
        return sorted(posts.book.current.accounts), posts.book.current.trouble

    apart = None
    if feeds is not None and settings.cache_redis_url is not None:
        store, key = feeds.store, prefix_of(settings.namespace, settings.upstream)

        async def about() -> Mapping[str, str]:
            return await store.about(key)

        apart = Asked(about, clock, again_s=ABOUT_AGAIN_S)
    return Sources(
        role=process.role,
        clock=clock,
        beat=lambda: instruments.tally.beat(clock.steady()),
        totals=lambda: process.board.totals(clock.steady()),
        read=None if feeds is None else feeds.report,
        cache_about=apart,
        standing=Asked(standing, clock, again_s=AGAIN_S),
        about=Asked(posts.store_config, clock, again_s=ABOUT_AGAIN_S),
        accounts=accounts,
        incidents=process.incidents,
        expected=process.expected,
    )


def spans_if_installed(role: str, environ: Mapping[str, str]) -> ClosableSpans:
    """Spans for OpenTelemetry, if its packages are installed and its own variables say who collects."""
    collected = any(environ.get(f"OTEL_EXPORTER_OTLP_{name}") for name in ("ENDPOINT", "TRACES_ENDPOINT"))
    if not collected or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return NoSpans()
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        _log.warning("opentelemetry_not_installed", remedy="pip install feedproxy[otel]")
        return NoSpans()
    from proxy.otel import OtelSpans  # noqa: PLC0415 - nobody else pays for it

    return OtelSpans(role)
