"""Whose posts have changed is said, so that whoever keeps copies of them may look again."""

from __future__ import annotations

from collections.abc import Callable, Collection

from proxy.syndication.accounts import Accounts
from proxy.syndication.attempt import Lease, Outcome, Publish, Published
from proxy.syndication.job import Delivery
from proxy.syndication.post import Post
from proxy.syntax import at_uri_authority

# Is told the names of an account: its DID, and the handle by which the operator calls it.
Changed = Callable[[Collection[str]], None]


class Announcing:
    """A Publish that calls `changed` after each post that is there, or not any more.

    Also for what was found there already: who has sent it may have died before it said so.
    """

    def __init__(self, publish: Publish, accounts: Callable[[], Accounts], changed: Changed) -> None:
        self._publish = publish
        self._accounts = accounts
        self._changed = changed

    async def __call__(self, delivery: Delivery, post: Post, lease: Lease) -> Outcome:
        """See `attempt.Publish`."""
        outcome = await self._publish(delivery, post, lease)
        if isinstance(outcome, Published):
            account = self._accounts().accounts.get(delivery.account)
            called = {account.identifier.lower()} if account is not None else set()
            self._changed({at_uri_authority(outcome.uri), *called})
        return outcome
