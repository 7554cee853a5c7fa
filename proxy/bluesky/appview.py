"""The AppView, as its manners want it asked: one forward is a few attempts within a deadline."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import httpx
import ijson
from pydantic_core import from_json

from proxy.bluesky.transport import within
from proxy.clock import Clock
from proxy.errors import UpstreamError, UpstreamFailure, UpstreamTimeout, UpstreamUnavailable
from proxy.resilience.backoff import full_jitter, told_to_wait
from proxy.resilience.gate import PATIENCE_S, Gate, Pass
from proxy.resilience.limiter import Asker
from proxy.tally import Tally
from proxy.telemetry import get_logger

MAX_BODY_BYTES: Final = 2 * 1024 * 1024

# Answers of the AppView to the question itself; everything else is trouble.
_ANSWERS: Final = frozenset({200, 304, 400, 404, 410})
_RETRIED: Final = frozenset({429, 502, 503, 504})
# An upstream that sends these is not alive, whatever it says besides.
_DEAD: Final = frozenset({502, 503, 504})
# What a client is told when the upstream refuses and does not say for how long.
_COME_BACK_S: Final = 5.0
# The AppView shows threads up to 1,000 replies deep, a few levels each; users may nest what they like.
MAX_DEPTH: Final = 10_000
_DEPTH: Final = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}
# A body larger than this is checked outside the event loop.
_LARGE_BYTES: Final = 64 * 1024

_TOO_DEEP: Final = object()

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer of the AppView: a result (200), "unchanged" (304), or an error that answers (400, 404, 410).

    `headers` have lower-case names. `body` is as the AppView wrote it, without content coding; `document` is
    its JSON, always an object, None for a 304. `took_s` is the time from sending the request that was
    answered to its last byte.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    document: Mapping[str, Any] | None
    took_s: float

    @property
    def error(self) -> str | None:
        """The XRPC error name of an answer that is an error."""
        name = (self.document or {}).get("error")
        return name if self.status >= 400 and isinstance(name, str) else None

    @property
    def message(self) -> str:
        """The XRPC error message, empty if there is none."""
        message = (self.document or {}).get("message")
        return message if isinstance(message, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often one forward tries (`attempts` includes the first) and how long it waits in between."""

    attempts: int
    base_s: float
    cap_s: float


class _Transient(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, error: UpstreamError, *, alive: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.alive = alive


class AppView:
    """Asks the AppView for answers to public queries."""

    def __init__(
        self,
        base_url: str,
        transport: httpx.AsyncBaseTransport,
        gate: Gate,
        clock: Clock,
        retry: RetryPolicy,
        *,
        user_agent: str,
        draw: random.Random,
        tally: Tally,
    ) -> None:
        self._base_url = base_url
        self._transport = transport
        self._user_agent = user_agent
        self._gate = gate
        self._clock = clock
        self._retry = retry
        self._draw = draw
        self._tally = tally

    def closed_for_s(self) -> float:
        """Seconds for which every question would be refused at once."""
        return self._gate.closed_for_s()

    def spent_for_s(self, asker: Asker) -> float:
        """Seconds for which `asker` is known to have spent its share."""
        return self._gate.spent_for_s(asker)

    async def ask(self, target: str, headers: Mapping[str, str], asker: Asker, deadline: float) -> Reply:
        """Ask for `target` (path and query) until the steady instant `deadline`.

        Must run in a task that nobody cancels. Raises UpstreamUnavailable (not asked, or told to come back
        later; ShareSpent if that is because of its client), UpstreamTimeout, or UpstreamFailure (any other
        trouble).
        """
        async with self._gate.forward() as leave:
            attempt = 1
            while True:
                try:
                    return await self._attempt(target, headers, asker, deadline, leave)
                except _Transient as failed:
                    wait_s = full_jitter(
                        attempt, base_s=self._retry.base_s, cap_s=self._retry.cap_s, draw=self._draw.random()
                    )
                    if attempt >= self._retry.attempts or self._is_hopeless(wait_s, deadline):
                        raise failed.error from failed
                    _log.info("upstream_retry", attempt=attempt, wait_s=round(wait_s, 3), reason=str(failed))
                attempt += 1
                self._tally.add("feedproxy_upstream_retries")
                self._tally.add("feedproxy_upstream_backoff_seconds", by=wait_s)
                await asyncio.sleep(wait_s)

    def _is_hopeless(self, wait_s: float, deadline: float) -> bool:
        """Whether another attempt would find the gate closed, or the time over."""
        held_s = self._gate.closed_for_s()
        return held_s > PATIENCE_S or self._clock.steady() + max(wait_s, held_s) >= deadline

    async def _attempt(
        self, target: str, headers: Mapping[str, str], asker: Asker, deadline: float, leave: Pass
    ) -> Reply:
        async with self._gate.attempt(leave, asker, deadline):
            sent_at = self._clock.steady()
            try:
                reply = await self._send(target, headers, deadline, sent_at)
            except _Transient as failed:
                leave.alive = failed.alive
                raise
            except UpstreamError as refused:
                leave.alive = not isinstance(refused, UpstreamTimeout)
                raise
        leave.alive = _is_alive(reply)
        return _answer_of(reply)

    async def _send(self, target: str, headers: Mapping[str, str], deadline: float, sent_at: float) -> Reply:
        """One request. The whole body is read before anything is believed."""
        # A client of httpx would take as long again: for cookies, logins and redirects, which we do not want.
        request = httpx.Request(
            "GET",
            f"{self._base_url}{target}",
            headers={"user-agent": self._user_agent, **headers},
            extensions=within(deadline),
        )
        try:
            async with aclosing(await self._transport.handle_async_request(request)) as response:
                told = {name.lower(): value for name, value in response.headers.items()}
                self._heed(response.status_code, told)
                body = await _read(response)
        except httpx.TimeoutException:
            raise UpstreamTimeout("the upstream did not answer in time") from None
        except httpx.TransportError as error:
            name = type(error).__name__
            failure = UpstreamFailure(f"the connection to the upstream failed ({name})")
            raise _Transient(failure, alive=False) from error
        took_s = self._clock.steady() - sent_at
        if response.status_code in _RETRIED:
            raise self._busy(response.status_code)
        document = None if response.status_code == 304 else await _json_object(body, told)
        return Reply(status=response.status_code, headers=told, body=body, document=document, took_s=took_s)

    def _heed(self, status: int, headers: Mapping[str, str]) -> None:
        wait_s = told_to_wait(status, headers, wall_now=self._clock.wall())
        if wait_s is not None and wait_s > 0:
            _log.warning("upstream_asked_to_wait", status=status, wait_s=round(wait_s, 1))
            self._gate.hold_off(wait_s)

    def _busy(self, status: int) -> _Transient:
        held_s = self._gate.closed_for_s()
        message = f"the upstream answered {status}"
        if status in (429, 503):
            error: UpstreamError = UpstreamUnavailable(
                message, upstream_status=status, retry_after_s=held_s or _COME_BACK_S
            )
        else:
            error = UpstreamFailure(message, upstream_status=status)
        return _Transient(error, alive=status not in _DEAD)


def _is_alive(reply: Reply) -> bool:
    """Whether an AppView stands behind the reply: an XRPC error of any kind says so."""
    if reply.status in _ANSWERS or 400 <= reply.status < 500:
        return True
    return reply.error is not None


def _answer_of(reply: Reply) -> Reply:
    """The reply, if it answers the question; raises UpstreamFailure if it is trouble."""
    status = reply.status
    if status == 304 or (status == 200 and reply.document is not None):
        return reply
    if status in _ANSWERS and reply.error is not None:
        return reply
    said = f" {reply.error}" if reply.error else ""
    what = "something that is not XRPC JSON" if status in _ANSWERS else f"{status}{said}"
    raise UpstreamFailure(f"the upstream answered {what}", upstream_status=status)


async def _read(response: httpx.Response) -> bytes:
    """The decoded body, refused as soon as it is known to be too large or cut off."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", ""):
        raise UpstreamFailure(
            "the upstream answered in a coding it was not offered", upstream_status=response.status_code
        )
    inflate = zlib.decompressobj(wbits=31) if coding == "gzip" else None
    body = bytearray()
    async for part in response.aiter_raw():
        # One byte beyond the limit is enough to know; a bomb is never unpacked.
        room = MAX_BODY_BYTES + 1 - len(body)
        body += _inflated(inflate, part, room) if inflate else part[:room]
        if len(body) > MAX_BODY_BYTES:
            raise UpstreamFailure(
                f"the upstream answered more than {MAX_BODY_BYTES} bytes",
                upstream_status=response.status_code,
            )
    if inflate and body and not inflate.eof:
        raise httpx.RemoteProtocolError("the compressed body is cut off")
    return bytes(body)


def _inflated(inflate: zlib._Decompress, part: bytes, room: int) -> bytes:
    try:
        return inflate.decompress(inflate.unconsumed_tail + part, room)
    except zlib.error as error:
        raise httpx.RemoteProtocolError(f"the compressed body is damaged: {error}") from error


async def _json_object(body: bytes, headers: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The JSON object that the body is, None if it is something else."""
    if not headers.get("content-type", "").lower().startswith("application/json"):
        return None
    parsed = await asyncio.to_thread(_parsed, body) if len(body) > _LARGE_BYTES else _parsed(body)
    if parsed is _TOO_DEEP:
        parsed = await asyncio.to_thread(_parsed_deep, body)
    return parsed if isinstance(parsed, dict) else None


def _parsed(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        return _TOO_DEEP if "recursion" in str(error) else None


def _parsed_deep(body: bytes) -> Any:
    """The document where a fast parser gives up: a thread of a hundred replies nests some hundreds deep.

    Takes a second for 2 MiB, in a thread that lets others run meanwhile.
    """
    builder, depth = ijson.common.ObjectBuilder(), 0
    try:
        for event, value in ijson.basic_parse(body, use_float=True):
            depth += _DEPTH.get(event, 0)
            if depth > MAX_DEPTH:
                return None
            builder.event(event, value)
    except (ijson.JSONError, UnicodeDecodeError):
        return None
    return builder.value
