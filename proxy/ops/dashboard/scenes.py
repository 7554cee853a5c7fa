"""Makes what the dashboard is told, on demand: the report, the accounts' state, and the last hour."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

from proxy.clock import Clock
from proxy.ops.dashboard.history import History
from proxy.ops.dashboard.shown import Scene, document_of
from proxy.ops.reporter import AGAIN_S, Asked, Reporter
from proxy.syndication.accounts import Accounts
from proxy.syndication.controls import Controls
from proxy.syndication.overview import Overview
from proxy.version import VERSION


class Scenes:
    """Documents for viewers. `accounts` gives those of feedproxy.toml as they are now."""

    def __init__(
        self,
        reporter: Reporter,
        history: History,
        controls: Controls,
        accounts: Callable[[], Accounts],
        clock: Clock,
        *,
        budget_per_s: float,
    ) -> None:
        async def overview() -> Overview:
            return await controls.overview(accounts().accounts)

        self._reporter = reporter
        self._history = history
        self._accounts = accounts
        self._overview = Asked(overview, clock, again_s=AGAIN_S)
        self._budget_per_s = budget_per_s

    async def tell(self, seen_at: float) -> Mapping[str, Any]:
        """How everything stands, and the steps of the last hour after `seen_at` (since 1970)."""
        report = await self._reporter.report()
        overview = await self._overview.now()
        self._history.beat()
        accounts = self._accounts()
        return document_of(
            Scene(
                version=VERSION,
                host=socket.gethostname(),
                report=report,
                overview=overview,
                identifiers={name: account.identifier for name, account in accounts.accounts.items()},
                sites=sorted(accounts.sites),
                budget_per_s=self._budget_per_s,
                lately=self._history.lately(),
                steps=self._history.steps(seen_at),
            )
        )

    async def close(self) -> None:
        """Wait for what is still asked."""
        await self._overview.close()
