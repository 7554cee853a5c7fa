"""A job and its deliveries: states, the table of transitions, what is shown, when to try again. Pure.

A job is one post on its way; it has one delivery for each account. What Redis holds is read here, and the
Lua scripts (store/lua/queue_*.lua) make the transitions that TRANSITIONS allows, and no others.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from proxy.syndication.chain import Callback, callback_from_words
from proxy.syndication.rkey import record_uri

# Of jobs and deliveries as they are stored; this version reads one number less as well.
FORMAT: Final = 2
READABLE_FORMATS: Final = frozenset((FORMAT - 1, FORMAT))
# A delivery that so many workers in a row have died over is dead: it may be what killed them.
POISON_DELIVERIES: Final = 5
MAX_HISTORY: Final = 10


class DeliveryState(enum.StrEnum):
    """Where a delivery is; each live one is in exactly one of the first three."""

    READY = "ready"  # in its account's backlog; "parked" while the account's gate is closed
    ACTIVE = "active"  # leased by a worker
    DELAYED = "delayed"  # until due_at: a retry, a publication in the future, the site's quota
    DONE = "done"
    DEAD = "dead"  # failed for good, kept for a person to retry
    CANCELED = "canceled"


class Event(enum.StrEnum):
    """What happens to a delivery."""

    LEASE = "lease"  # a worker takes it
    FINISH = "finish"  # its record is on the account
    RETRY = "retry"  # the attempt failed, another may succeed
    FAIL = "fail"  # refused for good, or retries used up, or poison
    RELEASE = "release"  # given back without an attempt used, or its worker has gone
    DUE = "due"  # its instant has come
    EXPIRE = "expire"  # it has waited for too long
    POSTPONE = "postpone"  # an edit gave it a later instant
    CANCEL = "cancel"  # not wanted any more, and nothing is there
    REQUEUE = "requeue"  # a person, or an edit of the post, asks for it again
    UNPUBLISH = "unpublish"  # the record is to be deleted
    RESTORE = "restore"  # it is not to be deleted after all


_S, _E = DeliveryState, Event

TRANSITIONS: Final[Mapping[tuple[DeliveryState, Event], DeliveryState]] = MappingProxyType(
    {
        (_S.READY, _E.LEASE): _S.ACTIVE,
        (_S.READY, _E.EXPIRE): _S.DEAD,
        (_S.READY, _E.POSTPONE): _S.DELAYED,
        (_S.READY, _E.CANCEL): _S.CANCELED,
        (_S.READY, _E.RESTORE): _S.DONE,
        (_S.ACTIVE, _E.FINISH): _S.DONE,
        (_S.ACTIVE, _E.RETRY): _S.DELAYED,
        (_S.ACTIVE, _E.FAIL): _S.DEAD,
        (_S.ACTIVE, _E.RELEASE): _S.READY,
        (_S.ACTIVE, _E.CANCEL): _S.CANCELED,
        (_S.ACTIVE, _E.RESTORE): _S.DONE,
        (_S.DELAYED, _E.DUE): _S.READY,
        (_S.DELAYED, _E.EXPIRE): _S.DEAD,
        (_S.DELAYED, _E.CANCEL): _S.CANCELED,
        (_S.DELAYED, _E.RESTORE): _S.DONE,
        (_S.DEAD, _E.REQUEUE): _S.READY,
        (_S.DEAD, _E.CANCEL): _S.CANCELED,
        (_S.DEAD, _E.RESTORE): _S.DONE,
        (_S.CANCELED, _E.REQUEUE): _S.READY,
        (_S.DONE, _E.UNPUBLISH): _S.READY,
    }
)

LIVE: Final = frozenset((_S.READY, _S.ACTIVE, _S.DELAYED))
TERMINAL: Final = frozenset(DeliveryState) - LIVE


class Status(enum.StrEnum):
    """What a CMS is told of a job or of one account of it."""

    PENDING = "pending"
    RETRYING = "retrying"
    COMPLETED = "completed"
    PARTIAL = "partial"  # of a job alone
    FAILED = "failed"
    CANCELED = "canceled"
    SKIPPED = "skipped"  # said at intake; such a post has no job


class Action(enum.StrEnum):
    """What a delivery does to the account."""

    POST = "post"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed attempt, as it stands in a delivery's history. `at_ms` since 1970 by the store's clock."""

    at_ms: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One post to one account, as stored. Instants in ms since 1970 by the store's clock; 0 is "none"."""

    job: str
    account: str
    site: str
    state: DeliveryState
    action: Action = Action.POST
    attempts: int = 0  # intents to send that were carried out, from 1 with the first
    failures: int = 0  # of them failed, since the start or the last requeue; decides on retries
    deliveries: int = 0  # workers in a row that were lost over it
    fence: int = 0  # counts leases
    token: str = ""  # of the present lease
    worker: str = ""
    due_at_ms: int = 0  # while delayed
    expires_at_ms: int = 0
    waiting_for: str = ""  # why it is delayed: retry, schedule, quota
    did: str = ""  # empty until first resolved
    rkey: str = ""
    generation: int = 0  # of the record key
    uri: str = ""
    cid: str = ""
    intent: bytes = b""  # the frozen record, DAG-JSON; empty while nothing was sent
    after: str = ""  # withdrawn when it may have been sent: what is to become of its record
    error: str = ""  # the last failure's reason
    history: tuple[Failure, ...] = ()  # the last ten failures, oldest first
    degraded: tuple[str, ...] = ()  # what the post had to go without

    @property
    def id(self) -> str:
        """Job and account: names the delivery in every set of the queue."""
        return f"{self.job}:{self.account}"

    @property
    def shown(self) -> Status:
        """What a CMS is told."""
        return shown_status(self.state, self.failures)

    @property
    def is_deleted(self) -> bool:
        """Whether its record was deleted: it is done, and nothing of it is there."""
        return self.state is DeliveryState.DONE and self.action is Action.DELETE


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One post on its way, as stored. Instants in ms since 1970."""

    id: str
    site: str
    post: str  # the CMS's id
    accounts: tuple[str, ...]
    payload: str  # canonical JSON of the post; empty once finished
    revision: int | None = None
    edition: int = 1  # counts replacements of the payload
    group: str = ""
    priority: str = "normal"
    created_at_ms: int = 0
    finished_at_ms: int = 0  # 0 while a delivery is live
    first_published_at_ms: int = 0  # the first ever seen of this post: it decides the record key
    generation: int = 0
    enrich: str = ""  # wanted, running or done; empty: nothing is to be found out for it
    enrichment: str = ""  # what was, as enriching.py stores it
    unenriched: str = ""  # why nothing was
    callback: Callback | None = None  # None: nobody wants to be told of its end


def shown_status(state: DeliveryState, failures: int) -> Status:
    """What a CMS is told of a delivery in `state` that has failed `failures` times."""
    match state:
        case DeliveryState.READY | DeliveryState.ACTIVE | DeliveryState.DELAYED:
            return Status.RETRYING if failures else Status.PENDING
        case DeliveryState.DONE:
            return Status.COMPLETED
        case DeliveryState.DEAD:
            return Status.FAILED
        case DeliveryState.CANCELED:
            return Status.CANCELED


def job_status(shown: Iterable[Status]) -> Status:
    """What a CMS is told of a job whose deliveries are `shown`."""
    kinds = set(shown)
    if Status.RETRYING in kinds:
        return Status.RETRYING
    if Status.PENDING in kinds or not kinds:
        return Status.PENDING
    if len(kinds) == 1:
        return kinds.pop()
    return Status.PARTIAL if Status.COMPLETED in kinds else Status.FAILED


def retry_delay_s(failures: int, delays: Sequence[float]) -> float | None:
    """Seconds before the next attempt after `failures` (from 1) of them failed; None when none is left."""
    return delays[failures - 1] if 1 <= failures <= len(delays) else None


def delivery_from_fields(fields: Mapping[bytes, bytes]) -> Delivery | None:
    """The delivery that the hash `fields` describes; None if it is damaged or of an unknown format."""
    try:
        if int(fields[b"format"]) not in READABLE_FORMATS:
            return None
        return Delivery(
            job=fields[b"job"].decode(),
            account=fields[b"account"].decode(),
            site=fields[b"site"].decode(),
            state=DeliveryState(fields[b"state"].decode()),
            action=Action((fields.get(b"action") or b"post").decode()),
            **_numbers(fields, _DELIVERY_NUMBERS),
            **_texts(fields, _DELIVERY_TEXTS),
            uri=_uri(fields),
            intent=fields.get(b"intent", b""),
            history=tuple(
                Failure(at_ms=int(at_ms), reason=str(reason)) for at_ms, reason in _list(fields, b"history")
            ),
            degraded=tuple(str(item) for item in _list(fields, b"degraded")),
        )
    except (KeyError, ValueError, TypeError):
        return None


def job_from_fields(fields: Mapping[bytes, bytes]) -> Job | None:
    """The job that the hash `fields` describes; None if it is damaged or of an unknown format."""
    try:
        if int(fields[b"format"]) not in READABLE_FORMATS:
            return None
        revision = fields.get(b"revision")
        return Job(
            id=fields[b"id"].decode(),
            site=fields[b"site"].decode(),
            post=fields[b"post"].decode(),
            accounts=tuple(name for name in fields[b"accounts"].decode().split(",") if name),
            revision=int(revision) if revision else None,
            priority=(fields.get(b"priority") or b"normal").decode(),
            callback=_callback(fields),
            **_numbers(fields, _JOB_NUMBERS),
            **_texts(fields, _JOB_TEXTS),
        )
    except (KeyError, ValueError):
        return None


def _keyed(*names: str) -> tuple[tuple[str, bytes], ...]:
    """Names of attributes with those of the fields that they are read from."""
    return tuple((name, name.encode()) for name in names)


_DELIVERY_NUMBERS: Final = _keyed(
    "attempts", "failures", "deliveries", "fence", "due_at_ms", "expires_at_ms", "generation"
)
_DELIVERY_TEXTS: Final = _keyed("token", "worker", "waiting_for", "did", "rkey", "cid", "after", "error")
_JOB_NUMBERS: Final = _keyed(
    "edition", "created_at_ms", "finished_at_ms", "first_published_at_ms", "generation"
)
_JOB_TEXTS: Final = _keyed("payload", "group", "enrich", "enrichment", "unenriched")


def _numbers(fields: Mapping[bytes, bytes], names: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    return {name: int(fields.get(key) or 0) for name, key in names}


def _texts(fields: Mapping[bytes, bytes], names: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    return {name: fields.get(key, b"").decode() for name, key in names}


def _uri(fields: Mapping[bytes, bytes]) -> str:
    """Where the record is; one that follows from DID and key is not stored once it is there."""
    uri, did, rkey = (fields.get(name, b"").decode() for name in (b"uri", b"did", b"rkey"))
    there = fields[b"state"] == b"done" or fields.get(b"action") == b"delete"
    return record_uri(did, rkey) if there and not uri and did and rkey else uri


def _callback(fields: Mapping[bytes, bytes]) -> Callback | None:
    words = fields.get(b"callback", b"").decode()
    # Of a job that is over the URL is not kept.
    return callback_from_words(words) if words or fields.get(b"callback_url") else None


def _list(fields: Mapping[bytes, bytes], name: bytes) -> list[Any]:
    text = fields.get(name)
    # An empty table of Lua is written {}.
    return list(json.loads(text)) if text else []


def transitions_diagram() -> str:
    """TRANSITIONS as a Mermaid state diagram, for the README."""
    lines = ["stateDiagram-v2", f"    [*] --> {_S.READY}: enqueue", f"    [*] --> {_S.DELAYED}: enqueue"]
    lines += [f"    {state} --> {after}: {event}" for (state, event), after in TRANSITIONS.items()]
    lines += [f"    {state} --> [*]: sweep" for state in DeliveryState if state in TERMINAL]
    return "\n".join(lines)
