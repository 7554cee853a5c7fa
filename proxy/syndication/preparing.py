"""What a process does for its accounts ahead of their posts, in the background."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from proxy.background import running
from proxy.bluesky.pins import Pins
from proxy.bluesky.sessions import Sessions
from proxy.clock import Clock
from proxy.errors import PdsBusy, PdsError, StoreError
from proxy.resilience.backoff import full_jitter
from proxy.syndication.accounts import AccountBook, Accounts
from proxy.syndication.publisher import login_of
from proxy.telemetry import get_logger
from proxy.tenants import Account

# How often to look whether the fleet has renewed a session.
ROUND_S: Final = 60.0
# Pauses between attempts while an account cannot be prepared.
PAUSE_BASE_S: Final = 1.0
PAUSE_CAP_S: Final = 300.0

_LOOK_UP_S: Final = 10.0
# So many accounts at a time: nobody waits for this.
_AT_A_TIME: Final = 4

_log = get_logger()


class Preparer:
    """Gets to know the accounts of feedproxy.toml, so that the first post already finds its URI.

    Of each account the DID is resolved, and the session that the fleet has of it held in memory, for posts
    that come while the store is away. Nobody is logged in for it.
    """

    def __init__(
        self,
        book: AccountBook,
        pins: Pins,
        sessions: Sessions,
        clock: Clock,
        *,
        draw: Callable[[], float],
    ) -> None:
        self._book = book
        self._pins = pins
        self._sessions = sessions
        self._clock = clock
        self._draw = draw
        # Failures in a row, and the steady instant before which an account is left alone.
        self._troubled: dict[str, tuple[int, float]] = {}

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """At work for as long as the block lasts."""
        # Whoever ends the block closes the connections as well, so that no request is left half-way.
        async with running(account_preparer=self._run):
            yield

    async def _run(self) -> None:
        while True:
            self._book.changed.clear()
            accounts = self._book.current
            await accounts.warm()
            await self._prepare_all(accounts)
            pause_s = min([ROUND_S, *(at - self._clock.steady() for _, at in self._troubled.values())])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(pause_s, 0.0)):
                    await self._book.changed.wait()
                    self._troubled.clear()

    async def _prepare_all(self, accounts: Accounts) -> None:
        turns = asyncio.Semaphore(_AT_A_TIME)

        async def prepare(account: Account) -> None:
            async with turns:
                await self._prepare(accounts, account)

        now = self._clock.steady()
        due = [
            account
            for account in accounts.accounts.values()
            if self._troubled.get(account.name, (0, now))[1] <= now
        ]
        await asyncio.gather(*map(prepare, due))

    async def _prepare(self, accounts: Accounts, account: Account) -> None:
        try:
            if not await self._pins.known(account.identifier):
                await self._pins.did_of(account, self._clock.steady() + _LOOK_UP_S)
            login = login_of(accounts, account.name)
            if login is not None:
                await self._sessions.recall(login)
        except (PdsError, StoreError) as error:
            failures = self._troubled.get(account.name, (0, 0.0))[0] + 1
            draw = 0.5 + self._draw() / 2
            pause_s = full_jitter(failures, base_s=PAUSE_BASE_S, cap_s=PAUSE_CAP_S, draw=draw)
            told_s = error.wait_s if isinstance(error, PdsBusy) else 0.0
            self._troubled[account.name] = (failures, self._clock.steady() + max(pause_s, told_s))
            _log.info("account_not_prepared", account=account.name, reason=str(error))
        else:
            self._troubled.pop(account.name, None)
