"""Looks at everything that feedproxy needs, from this host, and tells what it finds: `feedproxy doctor`.

It asks once and repeats nothing; of accounts it uses the session that there is, or makes one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Final, TypeVar

from proxy.bluesky.identity import Identities
from proxy.bluesky.pds import host_of
from proxy.bluesky.transport import DeadlineTransport
from proxy.bluesky.wire import Wire
from proxy.clock import Clock
from proxy.composition.common import client_of, store_of
from proxy.composition.syndicating import Syndication
from proxy.errors import OperationalError, PdsError, PdsUnreachable, StoreError
from proxy.feeds.shared import prefix_of
from proxy.operating.posting import operating
from proxy.operating.stores import reachable
from proxy.ops.contradictions import contradictions
from proxy.ops.doctor import DATE_STEP_S, of_account, of_clock, of_refused, of_server, of_untried, of_upstream
from proxy.ops.findings import Finding, findings_of_posts
from proxy.ops.report import PostReport
from proxy.resilience.backoff import http_date
from proxy.settings import Settings
from proxy.syndication.accounts import load_accounts
from proxy.syndication.durability import durability_of
from proxy.tenants import Account

T = TypeVar("T")

_PATIENCE_S: Final = 10.0
_AT_A_TIME: Final = 8
# Whom to ask for where the operator names nobody: that there is no such account is an answer, too.
_ANYBODY: Final = "bsky.app"


async def examine(
    settings: Settings, clock: Clock, environ: Mapping[str, str], told: Callable[[int, int], None]
) -> list[Finding]:
    """A finding for each part, those that are well included. `told` hears of each step, and how many."""
    accounts = load_accounts(settings.tenants, environ).accounts
    async with _network(settings, clock) as network, _queue(settings, clock, environ) as (posts, away):
        steps = Steps(told)
        found = [*contradictions(settings), *away]
        if posts is not None:
            found += await steps.each([_of_queue(posts, clock)])
        if settings.cache_redis_url is not None:
            found += await steps.each([_of_cache(settings, clock)])
        found += await steps.each([network.upstream()])
        homes = dict(zip(accounts, await steps.each_one(map(network.home, accounts.values())), strict=True))
        servers = sorted({home for home in homes.values() if isinstance(home, str)})
        seen = await steps.each_one(map(network.server, servers))
        well = {server for server, finding in zip(servers, seen, strict=True) if finding.status == "pass"}
        found += seen
        found += [home for home in homes.values() if isinstance(home, Finding)]
        if posts is not None:
            usable = [name for name, home in homes.items() if home in well]
            found += await steps.each_one(_of_login(posts, name) for name in usable)
    return found


class Steps:
    """Takes steps, some at a time, and tells how many are done, of how many."""

    def __init__(self, told: Callable[[int, int], None]) -> None:
        self._told = told
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._done = self._total = 0

    async def each(self, steps: Iterable[Awaitable[list[T]]]) -> list[T]:
        """What comes of each, in their order."""
        return [found for several in await self.each_one(steps) for found in several]

    async def each_one(self, steps: Iterable[Awaitable[T]]) -> list[T]:
        """The same, of steps with one result. What one of them raises is raised when all are over."""
        waiting = list(steps)
        self._total += len(waiting)
        results = await asyncio.gather(*map(self._take, waiting), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]

    async def _take(self, step: Awaitable[T]) -> T:
        async with self._turns:
            result = await step
        self._done += 1
        self._told(self._done, self._total)
        return result


@contextlib.asynccontextmanager
async def _queue(
    settings: Settings, clock: Clock, environ: Mapping[str, str]
) -> AsyncIterator[tuple[Syndication | None, list[Finding]]]:
    """The queue; None where there is nothing to ask, and what is said of that."""
    try:
        reachable(settings)
    except OperationalError as error:
        untried = " Logins were not tried: sessions lie there." if settings.tenants.accounts else ""
        yield None, [Finding("queue", "warn", f"{error}.{untried}")]
        return
    async with operating(settings, clock, environ) as posts:
        yield posts, []


async def _of_queue(posts: Syndication, clock: Clock) -> list[Finding]:
    """Of its store, and of what lies in it."""
    accounts = posts.book.current
    standing = about = None
    trouble, clocks = "", []
    try:
        asked_at = clock.wall()
        now_ms = (await posts.controls(clock).overview([])).now_ms
        took_s = clock.wall() - asked_at
        clocks = [of_clock("clock_redis", "Redis", now_ms / 1000 - asked_at - took_s / 2, took_s / 2)]
        standing = await posts.queue.standing(accounts.accounts)
        about = await posts.store_config()
    except StoreError as error:
        trouble = str(error)
    report = PostReport(
        standing=standing,
        trouble=trouble,
        about=about,
        durability="" if about is None else durability_of(about),
        accounts=tuple(accounts.accounts),
        missing=accounts.trouble,
    )
    return [*clocks, *findings_of_posts(report)]


async def _of_cache(settings: Settings, clock: Clock) -> list[Finding]:
    """Of the cache's own store."""
    store = store_of(settings, clock)
    try:
        await store.about(prefix_of(settings.namespace, settings.upstream))
    except StoreError as error:
        return [of_server("cache_store", "The Redis of the cache", str(error), "FEEDPROXY_CACHE_REDIS_URL")]
    finally:
        await store.aclose()
    return [Finding("cache_store", "pass")]


async def _of_login(posts: Syndication, name: str) -> Finding:
    try:
        await posts.publisher.check(name)
        return of_account(name, await posts.publisher.points(name))
    except StoreError as error:
        return of_untried(name, str(error))
    except PdsError as error:
        return of_refused(name, str(error))


@contextlib.asynccontextmanager
async def _network(settings: Settings, clock: Clock) -> AsyncIterator[_Network]:
    transport = DeadlineTransport(clock, max_connections=_AT_A_TIME)
    async with client_of(settings, transport) as client:
        yield _Network(settings, clock, Wire(client, clock))


class _Network:
    """The servers that are asked, without the store."""

    def __init__(self, settings: Settings, clock: Clock, wire: Wire) -> None:
        self._settings = settings
        self._clock = clock
        self._wire = wire
        self._identities = Identities(wire, clock, plc_url=settings.plc_url, resolver_url=settings.upstream)

    async def upstream(self) -> list[Finding]:
        """Whether the read upstream answers, and its clock."""
        url = self._settings.upstream
        named = (actor for actor in self._settings.actors or () if not actor.startswith("at://"))
        asked_at = self._clock.wall()
        try:
            answer = await self._wire.send(
                "GET",
                f"{url}/xrpc/app.bsky.actor.getProfile",
                deadline=self._deadline(),
                params={"actor": next(named, _ANYBODY)},
            )
        except PdsUnreachable as error:
            return [of_server("upstream", url, str(error), "FEEDPROXY_UPSTREAM")]
        took_s = self._clock.wall() - asked_at
        is_xrpc = answer.document is not None and (answer.status == 200 or bool(answer.error))
        found = [of_upstream(url, answer.status, is_xrpc=is_xrpc, wait_s=answer.wait_s)]
        date = http_date(answer.told.get("date"))
        if date is not None:
            ahead_s = date + DATE_STEP_S / 2 - asked_at - took_s / 2
            found.append(of_clock("clock_upstream", url, ahead_s, (DATE_STEP_S + took_s) / 2))
        return found

    async def home(self, account: Account) -> str | Finding:
        """The server of an account, or why that is not known."""
        deadline = self._deadline()
        try:
            did = await self._identities.did_of(
                account.identifier, service=account.service, deadline=deadline
            )
            return account.service or await self._identities.pds_of(did, deadline=deadline)
        except PdsError as error:
            return of_refused(account.name, str(error))

    async def server(self, pds: str) -> Finding:
        """Whether a PDS answers."""
        try:
            answer = await self._wire.send(
                "GET", f"{pds}/xrpc/com.atproto.server.describeServer", deadline=self._deadline()
            )
        except PdsUnreachable as error:
            trouble = str(error)
        else:
            there = answer.status == 200 and answer.document is not None
            trouble = "" if there else f"it answered {answer.status}, and not as a PDS does"
        return of_server(f"pds {host_of(pds)}", pds, trouble, "the account's service and DID document")

    def _deadline(self) -> float:
        return self._clock.steady() + _PATIENCE_S
