"""Level 2: answers in the shared store, and who in the fleet asks the upstream for those that are missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from proxy.clock import Clock
from proxy.errors import StoreError, UpstreamError, UpstreamFailure, UpstreamTimeout, UpstreamUnavailable
from proxy.feeds.entry import Entry, entry_from_fields
from proxy.feeds.key import FeedKey
from proxy.settings import Settings
from proxy.store.link import Link, Run
from proxy.store.scripts import Script, script
from proxy.telemetry import get_logger

_LOOK: Final = script("look_entry")
_STORE: Final = script("store_entry", libraries=("flight",))
_CONFIRM: Final = script("confirm_entry", libraries=("flight",))
_END: Final = script("end_flight")
_RENEW: Final = script("renew_lease")
_KEEP_CURSOR: Final = script("keep_cursor")
_HAS_CURSOR: Final = script("has_cursor")

KIND: Final = "flight"
# A leader silent for so long is replaced. It renews its lease with each beat of the link.
LEASE_MS: Final = 1000
_ERRORS: Final = {kind.code: kind for kind in (UpstreamFailure, UpstreamUnavailable, UpstreamTimeout)}

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Loaded:
    """An answer from level 2 and its age by the store's clock, in seconds; below 0 if that stepped back.

    `as_of` is the last purge that was known when its flight began.
    """

    entry: Entry
    age_s: float
    as_of: int


@dataclass(frozen=True, slots=True)
class Lead:
    """Leave to ask the upstream. `token` shows it to the store; it is empty when the store was not asked."""

    token: str


@dataclass(frozen=True, slots=True)
class Led:
    """Another process asks the upstream; unless it says more, it counts as lost after `left_s` seconds."""

    left_s: float


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """The upstream has failed to answer, and is not to be asked for `left_s` seconds."""

    error: UpstreamError
    left_s: float


@dataclass(frozen=True, slots=True)
class Unshareable:
    """The upstream's answers must not be shared: each asker asks for itself."""


Seen = Loaded | Lead | Led | LeftAlone | Unshareable


class Write(Protocol):
    """A way to put an answer into level 2: `SharedCache.store` or `SharedCache.confirm`."""

    async def __call__(
        self, key: FeedKey, entry: Entry, lead: Lead, *, as_of: int, arrived_at: float, keep_s: float
    ) -> None:
        """Write `entry`, which arrived at the steady instant `arrived_at`, to stay for `keep_s` seconds."""


class SharedCache:
    """Answers by key, in Redis. Whatever goes wrong there is logged and counts as a miss.

    `memory_s` is for how long it is known who led last: longer than any flight. `failing_s` are the seconds
    for which a failing question is left alone, the first time and at most.
    """

    def __init__(
        self,
        link: Link,
        clock: Clock,
        *,
        prefix: str,
        channel: str,
        memory_s: float,
        failing_s: tuple[float, float],
    ) -> None:
        self._link = link
        self._clock = clock
        self._prefix = prefix
        self._channel = channel
        self._memory_ms = round(memory_s * 1000)
        self._failing_ms = tuple(round(seconds * 1000) for seconds in failing_s)

    @property
    def hesitates(self) -> bool:
        """See Link."""
        return self._link.hesitates

    async def load(self, key: FeedKey) -> Loaded | None:
        """The answer to `key`, None if there is none or the store does not say."""
        try:
            seen = _seen(await self._link.run(_LOOK, self._names(key), ["", "", LEASE_MS, 0, 0]), key, "")
        except StoreError as error:
            _log.debug("shared_load_failed", reason=str(error))
            return None
        return seen if isinstance(seen, Loaded) else None

    async def look(self, key: FeedKey, token: str, *, known_stamp: str, floor: int) -> Seen:
        """What there is, unless it has `known_stamp`; else who asks the upstream.

        That is we, under `token`, if nobody else does and nothing speaks against it; without a token, the
        store does not hear of it. Another leader counts only if it knew the purge `floor`.
        """

        async def late(answer: Any) -> None:
            if isinstance(_seen(answer, key, token), Lead):
                await self.release(key, Lead(token), None)

        args = [known_stamp, token, LEASE_MS, self._memory_ms, floor]
        try:
            answer = await self._link.run(_LOOK, self._names(key), args, late=late)
        except StoreError as error:
            _log.debug("shared_look_failed", reason=str(error))
            return Lead("")
        seen = _seen(answer, key, token)
        if seen is None and known_stamp != "*":
            # Something is there that only another version can read: it is as good as nothing.
            return await self.look(key, token, known_stamp="*", floor=floor)
        return seen or Lead("")

    async def store(
        self, key: FeedKey, entry: Entry, lead: Lead, *, as_of: int, arrived_at: float, keep_s: float
    ) -> None:
        """See Write. Unless another has led since."""
        fields = {**entry.to_fields(), **_marks(entry, as_of)}
        pairs = [part for field in fields.items() for part in field]
        await self._write(
            _STORE, key, [*self._head(key, lead), round(keep_s * 1000), self._since_us(arrived_at), *pairs]
        )

    async def confirm(
        self, key: FeedKey, entry: Entry, lead: Lead, *, as_of: int, arrived_at: float, keep_s: float
    ) -> None:
        """See Write. The upstream confirmed `entry`: its age starts anew, its bodies are not sent again."""
        fields = entry.to_fields()
        marks = {"meta": fields["meta"], **_marks(entry, as_of)}
        args = [
            *(*self._head(key, lead), round(keep_s * 1000), self._since_us(arrived_at)),
            *(fields["format"], fields["hash"], *(part for mark in marks.items() for part in mark)),
        ]
        # Whatever is there instead, be it of another type, gives way.
        if await self._write(_CONFIRM, key, args) == -1:
            await self.store(key, entry, lead, as_of=as_of, arrived_at=arrived_at, keep_s=keep_s)

    async def fail(self, key: FeedKey, lead: Lead, error: UpstreamError) -> float | None:
        """Tell the fleet that the upstream failed to answer; for how many seconds nobody asks, if known."""
        held_ms = await self._end(key, lead, "failed", error, self._failing_ms[0])
        return int(held_ms) / 1000 if held_ms else None

    async def mark_unshareable(self, key: FeedKey, lead: Lead) -> None:
        """The answer must not be shared: whoever waits for it asks for itself."""
        await self._end(key, lead, "alone", None, self._failing_ms[1])

    async def release(self, key: FeedKey, lead: Lead, error: UpstreamError | None) -> None:
        """Nothing was learned of the question; `error` is what those are told who wait for its answer."""
        await self._end(key, lead, "released", error, 0)

    async def renew(self, run: Run, key: FeedKey, lead: Lead) -> bool:
        """Go on leading; whether nobody else leads. Raises StoreError."""
        args = [lead.token, LEASE_MS, self._memory_ms]
        return int(await run(_RENEW, self._names(key)[1:], args)) == 1

    async def keep_cursor(self, digest: str, keep_s: float) -> None:
        """A stored answer has handed out the cursor: somebody may come for the page that it leads to."""
        await self._run(_KEEP_CURSOR, [self._cursor_name(digest)], [round(keep_s * 1000)])

    async def has_cursor(self, digest: str) -> bool:
        """Whether the cursor was handed out by an answer of any process, as far as the store says."""
        return bool(await self._run(_HAS_CURSOR, [self._cursor_name(digest)], []))

    async def _end(
        self,
        key: FeedKey,
        lead: Lead,
        what: Literal["failed", "alone", "released"],
        error: UpstreamError | None,
        hold_ms: int,
    ) -> Any:
        if not lead.token:
            return None
        told = error_to_text(error) if error is not None else ""
        # Of a failure that lasts, followers learn all there is to know when they look.
        news = f"1 {KIND} {key.digest} {told if what == 'released' else ''}"
        args = [
            *(lead.token, self._channel, news, what),
            *(hold_ms, self._failing_ms[1], self._memory_ms, told),
        ]
        return await self._run(_END, self._names(key)[1:], args)

    async def _write(self, what: Script, key: FeedKey, args: list[Any]) -> Any:
        answer = await self._run(what, self._names(key), args)
        if answer is None:
            # What cannot be stored must not keep others waiting.
            await self._run(_END, self._names(key)[1:], [*args[:3], "released", 0, 0, self._memory_ms, ""])
        return answer

    async def _run(self, what: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return await self._link.run(what, keys, args)
        except StoreError as error:
            _log.debug("shared_call_failed", reason=str(error))
            return None

    def _head(self, key: FeedKey, lead: Lead) -> list[str]:
        return [lead.token, self._channel, f"1 {KIND} {key.digest} "]

    def _since_us(self, arrived_at: float) -> int:
        return round(max(0.0, self._clock.steady() - arrived_at) * 1e6)

    def _cursor_name(self, digest: str) -> str:
        return f"{self._prefix}cursor:{digest}"

    def _names(self, key: FeedKey) -> list[str]:
        # Each key tagged by itself: in a cluster the cache spreads over all nodes.
        name = f"{self._prefix}{{{key.digest}}}"
        return [name, f"{name}:flight"]


def prefix_of(namespace: str, upstream: str) -> str:
    """What the names of everything begin with that has to do with `upstream`.

    Another upstream's answers are answers to other questions.
    """
    return f"{namespace}:feed:{hashlib.blake2b(upstream.encode(), digest_size=4).hexdigest()}:"


def channel_of(settings: Settings) -> str:
    """On which the processes that ask one upstream tell each other news."""
    return f"{prefix_of(settings.namespace, settings.upstream)}news"


def error_to_text(error: UpstreamError) -> str:
    """An error as processes tell it each other: what it is, not when to come back."""
    said = {"code": error.code, "message": error.message, "status": error.upstream_status}
    return json.dumps(said, separators=(",", ":"))


def error_from_text(text: str | bytes, retry_after_s: float | None = None) -> UpstreamError:
    """What `error_to_text` wrote; any other text is a failure as well."""
    try:
        said = json.loads(text)
        kind, message, status = _ERRORS[said["code"]], str(said["message"]), said["status"]
    except (ValueError, KeyError, TypeError):
        return UpstreamFailure("the upstream failed another process", retry_after_s=retry_after_s)
    return kind(message, upstream_status=status, retry_after_s=retry_after_s)


def _marks(entry: Entry, as_of: int) -> dict[str, bytes]:
    """What scripts and purges look at."""
    return {"stamp": entry.stamp.encode(), "as_of": str(as_of).encode()}


def _seen(answer: Any, key: FeedKey, token: str) -> Seen | None:
    """What `look_entry` answered; None for an answer that cannot be read."""
    now_us, what, *rest = answer
    match what:
        case b"entry":
            return _loaded(now_us, dict(zip(rest[::2], rest[1::2], strict=True)), key)
        case b"failing":
            left_s = int(rest[0]) / 1e6
            return LeftAlone(error_from_text(rest[1] or b"", left_s), left_s)
        case b"alone":
            return Unshareable()
        case b"led":
            return Led(int(rest[0]) / 1e6)
        case b"lead" | b"none":
            return Lead(token)
        case _:
            return None


def _loaded(now_us: Any, fields: dict[bytes, bytes], key: FeedKey) -> Loaded | None:
    entry = entry_from_fields(fields, key.id)
    if entry is None:
        return None
    try:
        resident_s = (int(now_us) - int(fields[b"arrived_at"])) / 1e6
        as_of = int(fields[b"as_of"])
    except (KeyError, ValueError):
        return None
    # From the future: of unknown age, which is for the caller to judge.
    return Loaded(entry, resident_s if resident_s < 0 else entry.initial_age_s + resident_s, as_of)
