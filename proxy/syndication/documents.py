"""Jobs as a CMS is shown them, with what has to be asked for: DIDs of accounts, the store's durability."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from proxy.errors import StoreError
from proxy.syndication.accounts import AccountBook
from proxy.syndication.desk import JobPage, JobView
from proxy.syndication.durability import Durability
from proxy.syndication.job import Action, Status
from proxy.syndication.overview import ErrorGroup
from proxy.syndication.post import Skip
from proxy.syndication.report import error_lines
from proxy.syndication.shown import Shower
from proxy.syntax import is_did
from proxy.tenants import Account

# The DID of an account as far as it is known without asking the network, else "".
KnownDid = Callable[[Account], Awaitable[str]]


class Documents:
    """Makes the documents. `base` is put before paths: "" or an origin."""

    def __init__(
        self, book: AccountBook, durability: Durability, known_did: KnownDid, *, base: str = ""
    ) -> None:
        self._book = book
        self._durability = durability
        self._known_did = known_did
        self._shower = Shower(base=base)

    async def job(self, view: JobView, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
        """A job."""
        return self._shower.job(
            view,
            dids=await self.dids(view.job.accounts),
            durability=await self._durability.now(),
            warnings=warnings,
        )

    async def page(self, page: JobPage, errors: Sequence[ErrorGroup] | None) -> dict[str, Any]:
        """Part of a list of jobs; `errors` are of all that it is part of, and on its first page only."""
        # Asked once for the page, not for each job.
        dids = await self.dids({name: None for view in page.jobs for name in view.job.accounts})
        durability = await self._durability.now()
        shown = [self._shower.job(view, dids=dids, durability=durability) for view in page.jobs]
        told = None if errors is None else error_lines(errors)
        return {"jobs": shown, "errors": told, "cursor": page.cursor or None}

    def skipped(self, reason: Skip, warnings: tuple[str, ...]) -> dict[str, Any]:
        """A post that is not syndicated."""
        return self._shower.skipped(reason, warnings)

    def remembered(
        self,
        status: Status,
        records: Mapping[str, tuple[str, str, str]],
        warnings: tuple[str, ...],
        *,
        action: Action = Action.POST,
    ) -> dict[str, Any]:
        """A post without a job; see Shower.remembered."""
        return self._shower.remembered(status, records, warnings, action=action)

    async def dids(self, names: Iterable[str]) -> dict[str, str]:
        """The DID of each account, "" where it is not known (yet, or to this host)."""
        dids = {}
        for name in names:
            account = self._book.current.accounts.get(name)
            if account is None:
                dids[name] = ""
            elif is_did(account.identifier):
                dids[name] = account.identifier
            else:
                dids[name] = await self._looked_up(account)
        return dids

    async def _looked_up(self, account: Account) -> str:
        try:
            return await self._known_did(account)
        except StoreError:
            return ""
