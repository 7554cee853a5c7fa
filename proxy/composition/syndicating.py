"""The write path of a process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import socket
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
)
from dataclasses import dataclass, replace
from typing import Final

from starlette.routing import BaseRoute

from proxy.bluesky.identity import Identities
from proxy.bluesky.pds import Observe, Pds
from proxy.bluesky.pins import Pins
from proxy.bluesky.sessions import Sessions
from proxy.bluesky.transport import DeadlineTransport
from proxy.bluesky.wire import Wire
from proxy.clients import Trust
from proxy.clock import Clock
from proxy.composition.common import client_of, user_agent
from proxy.composition.queueing import DAY_S, queueing
from proxy.errors import PdsError
from proxy.instruments import Instruments
from proxy.resilience.adaptive import AdaptivePolicy
from proxy.resilience.limiter import Rate
from proxy.resilience.pace import LocalPace, SharedPace
from proxy.settings import Settings
from proxy.store.persistence import persistence_of
from proxy.syndication.accounts import AccountBook, TokenCheck
from proxy.syndication.announcing import Announcing, Changed
from proxy.syndication.attempt import Publish
from proxy.syndication.callbacks import Callbacks
from proxy.syndication.controls import Controls
from proxy.syndication.counting import CountedPublish
from proxy.syndication.direct import ENRICH_S, DirectPublisher
from proxy.syndication.documents import Documents
from proxy.syndication.durability import Durability
from proxy.syndication.enriching import Enricher
from proxy.syndication.errands import Errands
from proxy.syndication.foreign import ForeignReader
from proxy.syndication.gates import GateKeeper
from proxy.syndication.intake import Intake, IntakePolicy
from proxy.syndication.outside import Outside
from proxy.syndication.preparing import Preparer
from proxy.syndication.publisher import Publisher
from proxy.syndication.queue import JobQueue
from proxy.syndication.routes import SyndicationRoutes
from proxy.syndication.slots import Slots
from proxy.syndication.waiting import Waiters, WaitPolicy
from proxy.syndication.worker import Worker, WorkerPolicy
from proxy.tenants import Account

# What is under way to PDSs at a time, beside a request for each delivery: logins, look-ups.
_SPARE_CONNECTIONS: Final = 8
# A person waits for the answer.
_FORGIVE_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Syndication:
    """What the write path of a web process and that of a worker have in common."""

    queue: JobQueue
    book: AccountBook
    pins: Pins
    sessions: Sessions
    publisher: Publisher
    changed: Changed
    observers: list[Observe]  # of what is asked of PDSs
    store_config: Callable[[], Awaitable[Mapping[str, str]]]
    instruments: Instruments
    outside: Outside
    enricher: Enricher
    documents: Documents

    def routes(self, settings: Settings, clock: Clock, draining: asyncio.Event) -> list[BaseRoute]:
        """The intake: /syndicate and what belongs to it."""
        desk = GateKeeper(self.queue, clock)
        intake = Intake(
            desk,
            self.book,
            clock,
            IntakePolicy(max_post_age_s=settings.max_post_age_days * DAY_S),
            documents=self.documents,
            forgive=lambda account: self._forgive(account, clock),
            publish_now=DirectPublisher(
                self._announced(functools.partial(self.publisher, enrich_s=ENRICH_S)),
                self.sessions,
                lambda: self.book.current,
                clock,
                closed=desk.closed,
            ),
        )
        waiters = Waiters(intake, draining, WaitPolicy())
        edge = SyndicationRoutes(
            intake,
            TokenCheck(self.book, clock),
            waiters,
            trust=Trust(settings.trusted_proxies),
            public_url=settings.public_url,
        )
        return edge.routes()

    def worker(self, settings: Settings, clock: Clock) -> Worker:
        """A worker on this queue, with a name that no other ever had."""
        policy = WorkerPolicy(concurrency=settings.worker_concurrency, lease_s=settings.lease_s)
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        draw = random.Random().random  # noqa: S311  (jitter, not secrets)
        slots = Slots(AdaptivePolicy(ceiling=settings.worker_concurrency), clock)
        self.observers.append(slots.heard)
        tally = self.instruments.tally
        callbacks = Callbacks(self.outside.post, self.documents.job, clock, draw=draw)
        worker = Worker(
            self.queue,
            CountedPublish(self._announced(self.publisher), self.instruments, clock),
            self.fingerprints,
            clock,
            policy,
            name=name,
            draw=draw,
            slots=slots,
            home=self.publisher.home,
            errands=Errands(
                self.queue,
                self.enricher,
                callbacks,
                lambda: self.book.current,
                clock,
                lambda outcome: tally.add("feedproxy_callbacks", outcome),
            ),
        )
        tally.gauge("feedproxy_pool_size", read=lambda: policy.concurrency)
        tally.gauge("feedproxy_pool_busy", read=lambda: worker.in_flight)
        tally.found("feedproxy_pool_host_limit", slots.limits)
        return worker

    def fingerprints(self) -> Mapping[str, str]:
        """The accounts that can be logged in to, with what tells one password from the next."""
        accounts = self.book.current
        known = {name: accounts.credential(name) for name in accounts.usable()}
        return {name: credential.fingerprint for name, credential in known.items() if credential}

    def controls(self, clock: Clock) -> Controls:
        """What operators may do to the queue."""
        return Controls(self.queue, lambda name: self.forgive(name, clock))

    async def forgive(self, name: str, clock: Clock) -> None:
        """See Controls: a refused login of the account is to be tried once more."""
        if (account := self.book.current.accounts.get(name)) is not None:
            await self._forgive(account, clock)

    def _announced(self, publish: Publish) -> Publish:
        return Announcing(publish, lambda: self.book.current, self.changed)

    async def _forgive(self, account: Account, clock: Clock) -> None:
        # Of an account that nobody can find no login was refused.
        with contextlib.suppress(PdsError):
            await self.sessions.forgive(account, clock.steady() + _FORGIVE_S)


@contextlib.asynccontextmanager
async def syndicating(
    settings: Settings,
    clock: Clock,
    environ: Mapping[str, str],
    instruments: Instruments,
    changed: Changed,
    *,
    prepare: bool = True,
) -> AsyncIterator[Syndication]:
    """Everything that posts need; `changed` hears of accounts whose posts have changed.

    Until the first post nothing is sent but questions of who accounts are; with `prepare`, these are asked
    ahead of posts.
    """
    book = AccountBook(settings.tenants, environ)
    async with contextlib.AsyncExitStack() as stack:
        base = await stack.enter_async_context(queueing(settings, clock))
        store, prefix = base.store, base.prefix
        connections = settings.worker_concurrency + _SPARE_CONNECTIONS
        transport = DeadlineTransport(clock, max_connections=connections)
        client = await stack.enter_async_context(
            client_of(settings, instruments.transport(transport, "feedproxy_pds"))
        )
        wire = Wire(client, clock)
        rate = Rate(per_s=settings.pds_rps, burst=settings.pds_burst)
        alone = LocalPace(replace(rate, per_s=rate.per_s * settings.degraded_share), clock)
        observers: list[Observe] = []
        pace = SharedPace(store, rate, alone, clock, prefix=prefix)
        pds = Pds(wire, pace, clock, observers=observers)
        identities = Identities(wire, clock, plc_url=settings.plc_url, resolver_url=settings.upstream)
        pins = Pins(store, identities, prefix=prefix)
        sessions = Sessions(store, pds, identities, pins, clock, prefix=prefix)
        draw = random.Random().random  # noqa: S311  (jitter, not secrets)
        if prepare:
            await stack.enter_async_context(Preparer(book, pins, sessions, clock, draw=draw).working())
        outside = Outside(clock, user_agent=user_agent(settings), allowed=settings.enrich_allow)
        enricher = Enricher(outside, ForeignReader(clock), clock)
        config = persistence_of(base.servers, prefix)
        yield Syndication(
            queue=base.queue,
            book=book,
            pins=pins,
            sessions=sessions,
            publisher=Publisher(sessions, pds, identities, enricher, lambda: book.current, clock),
            changed=changed,
            observers=observers,
            store_config=config,
            instruments=instruments,
            outside=outside,
            enricher=enricher,
            documents=Documents(
                book,
                Durability(config, clock),
                lambda account: pins.known(account.identifier),
                base=settings.public_url or "",
            ),
        )
