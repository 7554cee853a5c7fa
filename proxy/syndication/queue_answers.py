"""What the queue's scripts answer, read into what Python knows. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proxy.errors import NewerFormat
from proxy.syndication.chain import Errand, errand_from_fields, is_errand
from proxy.syndication.desk import Enqueued, JobPage, JobView, Verdict
from proxy.syndication.job import FORMAT, Delivery, Job, delivery_from_fields, job_from_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A delivery or an errand that this worker may work on, until it settles it or falls silent.

    Of a delivery `delivery` or `job` is None when it is damaged: such a one can only fail; so is `errand` of
    an errand, whose `job` may be over and gone. `fresh`: the lease began with this answer; else it is one
    that the worker got before.
    """

    id: str
    token: str
    delivery: Delivery | None
    job: Job | None
    errand: Errand | None = None
    fresh: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How settling a delivery went: `ours` if the lease still held; and the next one, if wanted."""

    ours: bool
    following: Leased | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """How many were due, and seconds until the next is; None when nothing is delayed."""

    count: int
    next_in_s: float | None


_SEPARATORS: Final = (",", ":")


def leased_from(answer: Sequence[Any], request: str = "") -> Leased:
    """One lease: delivery id, fields of the delivery, fields of the job. Leases of `request` are fresh."""
    name, stored, job = answer
    fields = _fields(stored)
    token = fields.get(b"token", b"").decode()
    errand = is_errand(name.decode())
    return Leased(
        id=name.decode(),
        token=token,
        fresh=token.startswith(request),
        delivery=None if errand else delivery_from_fields(fields),
        job=job_from_fields(_fields(job)),
        errand=errand_from_fields(name.decode(), fields) if errand else None,
    )


def settled_from(answer: Sequence[Any]) -> Settled:
    """What the steps answer that settle a lease."""
    how, following = answer
    return Settled(ours=how != b"lost", following=leased_from(following) if following else None)


def promoted_from(answer: Sequence[Any]) -> Promoted:
    """What queue_promote answers."""
    count, next_in_ms = answer
    return Promoted(count=count, next_in_s=None if next_in_ms < 0 else next_in_ms / 1000)


def enqueued_from(answer: Sequence[Any]) -> Enqueued:
    """What queue_enqueue answers."""
    verdict, replayed, first_published_at_ms, generation, job, view, *state = answer
    return Enqueued(
        verdict=Verdict(verdict.decode()),
        job=job.decode(),
        replayed=bool(replayed),
        view=_known_view(view),
        first_published_at_ms=int(first_published_at_ms),
        generation=int(generation),
        state=state[0].decode() if state else "",
    )


def view_from(text: bytes, payload: bytes | None = None) -> JobView | None:
    """The job that the JSON `text` shows; None if there is none. Raises NewerFormat."""
    if not text:
        return None
    document = json.loads(text)
    job = job_from_fields(_encoded(document["job"]) | {b"payload": payload or b""})
    deliveries = [delivery_from_fields(_encoded(fields)) for fields in document["deliveries"]]
    known = [delivery for delivery in deliveries if delivery is not None]
    if job is None:
        if document["job"].get("format", "").isdecimal() and int(document["job"]["format"]) > FORMAT:
            raise NewerFormat("a later version of feedproxy has the job")
        return None
    # An empty table of Lua is an object or an array, as it happens.
    gates = document["gates"] or {}
    return JobView(
        job=job,
        deliveries=tuple(known),
        gates={account: (reason, int(until_ms)) for account, (until_ms, reason) in gates.items()},
    )


def page_from(answer: Sequence[bytes]) -> JobPage:
    """What queue_list answers."""
    cursor, *views = answer
    found = map(_known_view, views)
    return JobPage(jobs=tuple(view for view in found if view is not None), cursor=cursor.decode())


def degraded_text(degraded: Sequence[str]) -> str:
    """What a post had to go without, as a delivery stores it."""
    return json.dumps(list(degraded), ensure_ascii=False, separators=_SEPARATORS)


def _known_view(text: bytes) -> JobView | None:
    try:
        return view_from(text)
    except NewerFormat:
        return None


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _encoded(fields: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in fields.items()}
