"""The queue: jobs and their deliveries in Redis, one script for each transition.

The hashes are the truth, the stream a doorbell, its pending list a lease, `reconcile` the proof. Each script
may be sent twice. Keys and scripts are described in store/lua/queue.lua.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proxy.clock import Clock
from proxy.errors import LeaseLost, StoreRefused, Superseded
from proxy.store.queue_store import QueueStore
from proxy.syndication.chain import CallbackOutcome
from proxy.syndication.desk import Enqueued, JobPage, JobView, Submission
from proxy.syndication.job import FORMAT, Status, retry_delay_s
from proxy.syndication.news import News
from proxy.syndication.overview import DeadFilter, ErrorGroup, merged_errors
from proxy.syndication.queue_answers import (
    Leased,
    Promoted,
    Settled,
    degraded_text,
    enqueued_from,
    leased_from,
    page_from,
    promoted_from,
    settled_from,
    view_from,
)
from proxy.syndication.queue_steps import STEPS
from proxy.syndication.standing import QueueStanding, standing_from

# Tombstones of posts and answers to idempotency keys.
TOMBSTONE_S: Final = 400 * 86400.0
IDEMPOTENCY_S: Final = 86400.0
BATCH: Final = 100
# So many dead letters are counted at a time.
_LOOKED_THROUGH: Final = 500
# A reason is for people; it must not fill the store.
MAX_REASON_CHARS: Final = 500


class Stream(enum.StrEnum):
    """What work there is comes in two streams, so that neither kind holds up the other."""

    DELIVERIES = "bells"
    ERRANDS = "errands"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """How long things take and are kept."""

    lease_s: float
    retry_delays_s: Sequence[float]
    breaker_threshold: int
    breaker_cooldown_s: float
    max_post_age_s: float
    done_retention_s: float
    dead_retention_s: float


class JobQueue:
    """Everything that happens to jobs. Each method may raise StoreUnavailable and StoreRefused."""

    def __init__(
        self, store: QueueStore, clock: Clock, policy: QueuePolicy, *, namespace: str, readable: int = FORMAT
    ) -> None:
        """`readable` is the highest format of jobs that this process understands."""
        self._store = store
        self._policy = policy
        self._readable = readable
        # One hash tag: in a cluster, all keys of the queue are on one node.
        self._prefix = f"{namespace}:{{q}}:"
        self._news = News(store, clock, channel=f"{self._prefix}news")

    @property
    def reachable(self) -> bool:
        """Whether the store answered lately."""
        return self._store.reachable

    async def aclose(self) -> None:
        """Stop listening; the store is the caller's."""
        await self._news.aclose()

    # What a CMS and people do.

    async def enqueue(self, submission: Submission) -> Enqueued:
        """Take `submission` in, or say what it is instead: one script, the same answer for the same key."""
        args = [
            *("format", FORMAT, "job", submission.job, "site", submission.site, "post", submission.post),
            *("url_hash", submission.url_hash, "payload", submission.payload),
            *("payload_hash", submission.payload_hash, "key", submission.key),
            *("explicit_key", int(submission.explicit_key), "revision", _text(submission.revision)),
            *("published_at_ms", submission.published_at_ms, "priority", submission.priority),
            *("wanted", int(submission.wanted), "skip", submission.skip, "group", submission.group),
            *("unpublish", submission.unpublish, "accounts", ",".join(submission.accounts)),
            *("dids", "".join(f"{did}," for did in submission.accounts.values())),
            *("posts_per_hour", submission.posts_per_hour, "max_waiting", submission.max_waiting),
            *("max_age_ms", self.max_post_age_ms),
            *("enrich", "wanted" if submission.enrich else "", "callback_url", submission.callback_url),
        ]
        return enqueued_from(await self.run("queue_enqueue", args))

    async def read(self, job: str, *, site: str | None = None) -> JobView | None:
        """The job with its deliveries; None if it is not known, or not of `site` if that is given."""
        text, payload = await self.run("queue_read", [job])
        view = view_from(text, payload)
        return view if view is not None and site in (None, view.job.site) else None

    async def jobs(
        self, site: str, *, status: Status | None, group: str | None, cursor: str | None, limit: int
    ) -> JobPage:
        """Jobs of `site`, newest first; a page may be short, even empty, before the list's end.

        A cursor that none of its pages gave is answered with an empty page.
        """
        if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 15):
            return JobPage(jobs=(), cursor="")
        args = [site, status or "", group or "", cursor or "", limit]
        return page_from(await self.run("queue_list", args))

    async def dead(
        self, what: str, wanted: DeadFilter, place: str, limit: int
    ) -> tuple[str, int, list[bytes]]:
        """Dead letters that fit: `what` is list, count, retry or drop; `limit` are looked at from `place` on.

        Returns where to go on ("" at the end), how many fit, and their JSON, or that of their counts.
        """
        from_ms, until_ms = wanted.died_from_ms, wanted.died_until_ms
        args: list[Any] = [what, wanted.site, wanted.account, wanted.group, wanted.reason.lower()]
        args += ["-inf" if from_ms is None else from_ms, "+inf" if until_ms is None else until_ms]
        answer = await self.run("queue_dead", [*args, place, limit, self.max_post_age_ms])
        return answer[0].decode(), answer[1], answer[2:]

    async def errors(self, wanted: DeadFilter) -> tuple[ErrorGroup, ...]:
        """The dead letters that fit, counted by account and reason; the most frequent first."""
        place, _, groups = await self.dead("count", wanted, "", _LOOKED_THROUGH)
        while place:
            place, _, more = await self.dead("count", wanted, place, _LOOKED_THROUGH)
            groups += more
        return merged_errors(groups)

    async def cancel(self, job: str) -> JobView | None:
        """Cancel what has not been sent; the job as it is then, None if it is not known."""
        return view_from(await self.run("queue_cancel", [job]))

    async def requeue(self, job: str, accounts: Sequence[str] = ()) -> JobView | None:
        """Try again, as from the start, what has failed of the job (for `accounts`, or all of it).

        So is its callback, wherever that is to go. Its accounts whose credentials were refused are given
        another chance with them.
        """
        return view_from(await self.run("queue_requeue", [job, self.max_post_age_ms, *accounts]))

    async def wait_for_news(self, job: str, timeout_s: float) -> None:
        """Return when something happened to `job`, or after `timeout_s` at most; read it then."""
        await self._news.wait(job, timeout_s)

    async def close_gate(self, account: str, reason: str, for_s: float | None) -> None:
        """Hand out nothing of `account` for `for_s` seconds; None: until `open_gate`."""
        await self.run("queue_gate", [account, "close", -1 if for_s is None else _ms(for_s), reason])

    async def open_gate(self, account: str) -> None:
        """Hand out what waits of `account`; its breaker and refused credentials are forgotten."""
        await self.run("queue_gate", [account, "open"])

    async def pause(self, account: str, *, paused: bool) -> None:
        """Pause or resume `account`, apart from its gate."""
        await self.run("queue_gate", [account, "pause" if paused else "resume"])

    async def standing(self, accounts: Iterable[str]) -> QueueStanding:
        """How the queue stands; of `accounts`, and of others that are closed, what waits for them."""
        args = [self.lease_ms, _ms(self._policy.max_post_age_s), *accounts]
        return standing_from(await self.run("queue_standing", args))

    # What workers do. `worker` is a name that no other process ever had.

    async def introduce(self, worker: str, accounts: Mapping[str, str]) -> None:
        """`worker` is there and serves `accounts`, given with the fingerprints of their credentials."""
        await self.run("queue_introduce", [worker, *(part for pair in accounts.items() for part in pair)])

    async def heartbeat(self, worker: str) -> bool:
        """`worker` is alive; whether it was held alive until now. If not, its leases may be lost."""
        return bool(await self.run("queue_heartbeat", [worker, self.lease_ms]))

    async def take(
        self, worker: str, count: int, *, stream: Stream = Stream.DELIVERIES, own: bool = False
    ) -> list[Leased] | None:
        """Up to `count` leases for `worker` without waiting; None if it must introduce itself.

        `own`: those that it holds already, or whose bell was delivered to it.
        """
        return await self._take(worker, count, stream, ["pending"] if own else [])

    async def wait_and_take(
        self, worker: str, count: int, stream: Stream = Stream.DELIVERIES
    ) -> list[Leased] | None:
        """As `take`, but waits up to five seconds for something to do."""
        try:
            bells = await self._store.wait_for_entries(f"{self._prefix}{stream}", "workers", worker, count)
        except StoreRefused as error:
            if "NOGROUP" not in str(error):
                raise
            return None
        if not bells:
            return []
        found = [part for entry, f in bells for part in (entry, f[b"a"])]
        return await self._take(worker, count, stream, found)

    async def intend(
        self,
        leased: Leased,
        record: bytes,
        cid: str,
        rkey: str,
        *,
        did: str = "",
        generation: int | None = None,
    ) -> None:
        """Store what is about to be sent. Raises LeaseLost, and Superseded if the post was edited."""
        edition = leased.job.edition if leased.job else 0
        args = [leased.id, leased.token, edition, record, cid, rkey, did, _text(generation)]
        answer = await self.run("queue_intend", args)
        if answer == b"edited":
            raise Superseded(f"{leased.id} was edited or withdrawn meanwhile")
        if answer != b"ours":
            raise LeaseLost(f"the lease of {leased.id} is lost")

    async def finish(
        self, leased: Leased, uri: str, cid: str, degraded: Sequence[str] = (), *, following: str = ""
    ) -> Settled:
        """The record is there. `following`: the worker that wants the next delivery with the answer."""
        return await self._settle("queue_finish", leased, following, [uri, cid, degraded_text(degraded)])

    async def retry(
        self,
        leased: Leased,
        reason: str,
        *,
        counts_for_breaker: bool,
        not_before_s: float = 0.0,
        following: str = "",
    ) -> Settled:
        """The attempt failed; another follows after its delay, or the delivery is dead if none is left."""
        failures = leased.delivery.failures + 1 if leased.delivery else 0
        delay_s = retry_delay_s(failures, self._policy.retry_delays_s)
        args = [
            reason[:MAX_REASON_CHARS],
            -1 if delay_s is None else _ms(max(delay_s, not_before_s)),
            "failed" if counts_for_breaker else "",
            self._policy.breaker_threshold,
            _ms(self._policy.breaker_cooldown_s),
        ]
        return await self._settle("queue_retry", leased, following, args)

    async def fail(self, leased: Leased, reason: str, *, following: str = "") -> Settled:
        """Refused for good: nothing of it is there."""
        return await self._settle("queue_fail", leased, following, [reason[:MAX_REASON_CHARS]])

    async def release(
        self,
        leased: Leased,
        *,
        wait_s: float = 0.0,
        reason: str = "",
        refused_fingerprint: str = "",
        following: str = "",
    ) -> Settled:
        """Give back without an attempt used; the account waits for `wait_s`, or for other credentials."""
        args = [_ms(wait_s), reason[:MAX_REASON_CHARS], refused_fingerprint]
        return await self._settle("queue_release", leased, following, args)

    async def enriched(self, leased: Leased, enrichment: str, *, following: str = "") -> Settled:
        """The errand has found `enrichment`: the job's deliveries go on with it."""
        return await self._settle("queue_enrich", leased, following, [enrichment, "", -1])

    async def not_enriched(
        self, leased: Leased, reason: str, *, again_in_s: float | None = None, following: str = ""
    ) -> Settled:
        """The errand has found nothing; None as `again_in_s`: the deliveries go on without."""
        delay_ms = -1 if again_in_s is None else _ms(again_in_s)
        return await self._settle(
            "queue_enrich", leased, following, ["", reason[:MAX_REASON_CHARS], delay_ms]
        )

    async def notified(
        self,
        leased: Leased,
        outcome: CallbackOutcome,
        reason: str = "",
        *,
        again_in_s: float = 0.0,
        following: str = "",
    ) -> Settled:
        """How an attempt to tell of the job's end went; `again_in_s` is for one that is to be repeated."""
        args = [outcome, reason, _ms(again_in_s)]
        return await self._settle("queue_notify", leased, following, args)

    async def leave(self, worker: str) -> list[str]:
        """`worker` goes; what it still held is given back. Returns the ids of that."""
        return await self._reap(worker)

    # What every worker does now and then, for all.

    async def reap(self) -> list[str]:
        """Take back what workers held that have been silent for the length of a lease; the ids of that."""
        return await self._reap("")

    async def promote(self) -> Promoted:
        """Move on what is due: retries, scheduled posts, gates; and end what has waited for too long."""
        return promoted_from(await self.run("queue_promote", [BATCH]))

    async def sweep(self) -> int:
        """Forget a batch of what has been kept for long enough; how many went."""
        kept = (self._policy.done_retention_s, self._policy.dead_retention_s, TOMBSTONE_S, IDEMPOTENCY_S)
        return int(await self.run("queue_sweep", [*(_ms(seconds) for seconds in kept), BATCH]))

    async def mark(self, known: str) -> tuple[str, bool, bool]:
        """The store's mark; whether what it held is gone since the mark was `known`; if all is paused."""
        mark, lost, paused = await self.run("queue_mark", [known, secrets.token_urlsafe(9)])
        return mark.decode(), bool(lost), bool(paused)

    async def reconcile(self, cursor: str = "0") -> tuple[str, list[str]]:
        """Prove a part of the live deliveries to be in one place each, and repair what is not.

        Returns the next cursor ("0" when all were seen) and a sentence on each repair.
        """
        following, *repairs = await self.run("queue_reconcile", [cursor, BATCH, self.lease_ms])
        return following.decode(), [repair.decode() for repair in repairs]

    # For those who speak to the store in scripts of their own.

    @property
    def lease_ms(self) -> int:
        """For how long a silent worker is taken for alive."""
        return _ms(self._policy.lease_s)

    @property
    def max_post_age_ms(self) -> int:
        """For how long a delivery may wait."""
        return _ms(self._policy.max_post_age_s)

    async def run(self, step: str, args: Sequence[Any]) -> Any:
        """What the step of the queue's script answers."""
        return await self._store.run(STEPS[step], self._prefix, args)

    async def _take(self, worker: str, count: int, stream: Stream, how: list[Any]) -> list[Leased] | None:
        request = secrets.token_urlsafe(6)
        kind, *found = await self.run(
            "queue_take", [worker, request, self._readable, self.lease_ms, count, stream, *how]
        )
        return None if kind == b"stranger" else [leased_from(item, request) for item in found]

    async def _settle(self, step: str, leased: Leased, following: str, args: list[Any]) -> Settled:
        common = [
            leased.id,
            leased.token,
            following,
            secrets.token_urlsafe(6),
            self._readable,
            self.lease_ms,
        ]
        return settled_from(await self.run(step, [*common, *args]))

    async def _reap(self, leaver: str) -> list[str]:
        return [name.decode() for name in await self.run("queue_reap", [self.lease_ms, BATCH, leaver])]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
