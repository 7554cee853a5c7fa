"""What was declared dead: every process knows the log of purges and judges by it what it finds or fills.

Each purge has a number. An answer carries the last number that was known when its flight began; a purge with
a greater one, of a name that the answer goes by, makes it nothing. So no answer that was under way survives,
on whichever host, and nothing needs to be found and deleted.

The log also says which accounts have changed; what is to be done about that is for others (changes.py).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from proxy.feeds.key import FeedKey
from proxy.feeds.shared import prefix_of
from proxy.settings import Settings
from proxy.store.link import Link, Run
from proxy.store.news import News
from proxy.store.scripts import script
from proxy.syntax import is_did

PURGE: Final = script("purge")
_LOG: Final = script("purges")
_KIND: Final = "purge"
_EVERYTHING: Final = "*"
# Begins a name in the log that was not purged: what goes by it has changed.
CHANGED: Final = "+"
_MAX_ALIASES: Final = 50_000


class PurgeLog:
    """The number of the last purge of each name, and of all."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.last = 0

    def note(self, number: int, names: Iterable[str]) -> None:
        """`names` were purged under `number`."""
        self.last = max(self.last, number)
        for name in names:
            self._numbers[name] = max(number, self._numbers.get(name, 0))

    def floor(self, names: Iterable[str]) -> int:
        """What an answer that goes by `names` must have known to be alive."""
        numbers = self._numbers
        if not numbers:
            return 0
        return max(numbers.get(_EVERYTHING, 0), *(numbers.get(name, 0) for name in names), 0)


class Purges:
    """The log as this process knows it. `swept` is called after each purge, once the log has it.

    `changed` is told which account has changed, and how many seconds ago.
    """

    def __init__(
        self,
        link: Link,
        news: News,
        *,
        log_key: str,
        keep_s: float,
        changed: Callable[[str, float], None] = lambda _name, _ago_s: None,
    ) -> None:
        self._link = link
        self._news = news
        self._key = log_key
        self._keep_s = keep_s
        self._changed = changed
        self._log = PurgeLog()
        self._aliases: OrderedDict[str, str] = OrderedDict()  # from handle to DID and back
        # The log is whole up to this number, unless something may have been missed while nobody listened.
        self._whole_to = 0
        self._complete = False
        self.swept: Callable[[], None] = lambda: None
        news.subscribe(_KIND, self._heard)

    @property
    def known(self) -> int:
        """The number of the last purge that this process knows: flights that begin now carry it."""
        return self._log.last

    def floor(self, names: Iterable[str]) -> int:
        """See PurgeLog."""
        return self._log.floor(names)

    def learn(self, dids: Mapping[str, str]) -> None:
        """Remember which handle and which DID are one account."""
        for handle, did in dids.items():
            for name, other in ((handle, did), (did, handle)):
                self._aliases[name] = other
                self._aliases.move_to_end(name)
        while len(self._aliases) > _MAX_ALIASES:
            self._aliases.popitem(last=False)

    def names_of(self, key: FeedKey, dids: Mapping[str, str]) -> frozenset[str]:
        """The names under which an answer to `key` that speaks of `dids` can be purged."""
        accounts = {*key.accounts(), *dids, *dids.values()}
        return frozenset({*self._targets(key, dids), *self._with_aliases(accounts)})

    async def catch_up(self) -> None:
        """Know every purge there was before this call. Raises StoreError."""
        if not (self._complete and self._news.standing):
            await self.beat(self._link.run)

    async def beat(self, run: Run) -> None:
        """Ask whether there were purges that we have not heard of. Raises StoreError."""
        standing = self._news.standing
        last, now_us, *pairs = await run(_LOG, [self._key], [str(self._whole_to)])
        self._complete = standing
        whole_to, self._whole_to = self._whole_to, int(last)
        # The log is told as a whole; only what is new in it is news.
        entries = [(int(number), name.decode()) for name, number in zip(pairs[::2], pairs[1::2], strict=True)]
        purged = False
        for number, name in sorted(entry for entry in entries if entry[0] > whole_to):
            # Its number is the instant of a change, by the store's clock.
            purged |= self._note(number, [name] if name else [], ago_s=(int(now_us) - number) / 1e6)
        if purged:
            self.swept()

    async def purge_actor(self, actor: str) -> int:
        """Declare dead what is stored of an account, given by handle or DID; the purge's number.

        Raises StoreError: then it holds in this process only.
        """
        return await self._purge(self._with_aliases([actor if actor.startswith("did:") else actor.lower()]))

    async def purge_key(self, key: FeedKey) -> int:
        """Declare dead the answers to a question, with any labelers. As purge_actor."""
        return await self._purge(self._targets(key, {}))

    async def purge_all(self) -> int:
        """Declare everything dead. As purge_actor."""
        return await self._purge([_EVERYTHING])

    async def _purge(self, names: Iterable[str]) -> int:
        names = sorted(names)
        known = self._log.last
        # Here at once, even if the store is away: better too much than too little.
        self._apply(known + 1, names)
        args = [self._news.channel, known, round(self._keep_s * 1e6), *names]
        number = int(await self._link.run(PURGE, [self._key], args))
        self._apply(number, names)
        return number

    def is_known(self, account: str) -> bool:
        """Whether it is known which handle and which DID are this account."""
        return account in self._aliases

    def _targets(self, key: FeedKey, dids: Mapping[str, str]) -> set[str]:
        """A question has a name for each way to write its accounts."""
        return {_target_name(key), _target_name(key.with_dids({**self._aliases_of(key), **dids}))}

    def _aliases_of(self, key: FeedKey) -> dict[str, str]:
        known = {account: self._aliases.get(account, account) for account in key.accounts()}
        return {handle: did for handle, did in known.items() if is_did(did)}

    def _with_aliases(self, accounts: Iterable[str]) -> set[str]:
        found = set(accounts)
        return found | {self._aliases[name] for name in found if name in self._aliases}

    def _heard(self, text: str | None) -> None:
        if text is None:
            self._complete = False
            return
        before, number, *names = text.split(" ")
        if int(before) == self._whole_to:
            self._whole_to = int(number)
        else:
            self._complete = False  # some were missed: the next beat or look-up will ask
        self._apply(int(number), names)

    def _apply(self, number: int, names: Sequence[str]) -> None:
        if self._note(number, names, ago_s=0.0):
            self.swept()

    def _note(self, number: int, names: Sequence[str], *, ago_s: float) -> bool:
        """Whether anything was purged."""
        purged = [name for name in names if not name.startswith(CHANGED)]
        self._log.note(number, purged)
        for name in names:
            if name.startswith(CHANGED):
                self._changed(name.removeprefix(CHANGED), max(0.0, ago_s))
        return bool(purged)


def log_key_of(settings: Settings) -> str:
    """Where the log is kept."""
    return f"{prefix_of(settings.namespace, settings.upstream)}{{fleet}}:purges"


def _target_name(key: FeedKey) -> str:
    """The name by which the answers to a question are purged, whatever labelers were asked for."""
    return "=" + hashlib.blake2b(key.target.encode(), digest_size=16).hexdigest()
