"""Tells the CMS of a job's end: the job as GET shows it, signed, to the URL that the post named."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import SecretStr

from proxy.clock import Clock
from proxy.errors import OutsideError
from proxy.syndication.chain import CallbackOutcome, Errand, notification_id, notify_delay_s
from proxy.syndication.desk import JobView
from proxy.syndication.outside import Answer
from proxy.syndication.signing import signed_headers
from proxy.telemetry import get_logger
from proxy.tenants import Site

# For one attempt: names, connections and the answer's head. Its body is not read.
ATTEMPT_S: Final = 10.0
# The longest that a receiver may ask us to wait.
_MAX_WAIT_S: Final = 3600.0
_GONE: Final = 410

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """How an attempt went; `again_in_s` is for one that is to be repeated."""

    outcome: CallbackOutcome
    reason: str = ""
    again_in_s: float = 0.0


class Post(Protocol):
    """Sends to a stranger's server; see outside.Outside.post."""

    async def __call__(
        self, url: str, content: bytes, *, headers: Mapping[str, str], deadline: float, hosts: Sequence[str]
    ) -> Answer:
        """What is answered, whatever the status. Raises OutsideError."""


# The document of a job, as GET shows it.
Shown = Callable[[JobView], Awaitable[dict[str, Any]]]


class Callbacks:
    """Sends notifications. `draw` gives numbers in [0, 1)."""

    def __init__(self, post: Post, shown: Shown, clock: Clock, *, draw: Callable[[], float]) -> None:
        self._post = post
        self._shown = shown
        self._clock = clock
        self._draw = draw

    async def tell(
        self, errand: Errand, view: JobView, site: Site, secrets: Sequence[SecretStr], lease_ends_at: float
    ) -> Told:
        """One attempt to tell `site` of the end of the job in `view`, over before the lease ends."""
        body = json.dumps(await self._shown(view), ensure_ascii=False, separators=(",", ":"))
        headers = signed_headers(
            secrets,
            message_id=notification_id(errand.job, errand.number),
            body=body,
            now=self._clock.wall(),
        )
        headers["content-type"] = "application/json"
        deadline = min(self._clock.steady() + ATTEMPT_S, lease_ends_at)
        try:
            answer = await self._post(
                errand.url, body.encode(), headers=headers, deadline=deadline, hosts=site.hosts
            )
        except OutsideError as error:
            return self.again(errand, str(error), getattr(error, "retry_after_s", None))
        if 200 <= answer.status < 300:
            return Told(outcome=CallbackOutcome.DELIVERED)
        if answer.status == _GONE:
            _log.warning("callback_disabled", job=errand.job, site=errand.site, status=answer.status)
            return Told(
                outcome=CallbackOutcome.DISABLED,
                reason="answered 410: nothing is sent to this address until a retry",
            )
        return self.again(errand, f"answered {answer.status}", answer.wait_s)

    def again(self, errand: Errand, reason: str, wait_s: float | None = None) -> Told:
        """What becomes of an attempt that failed: another after a while, as long as any is left."""
        delay_s = notify_delay_s(errand.failures + 1, self._draw())
        if delay_s is None:
            _log.warning("callback_given_up", job=errand.job, site=errand.site, reason=reason)
            return Told(outcome=CallbackOutcome.FAILED, reason=reason)
        _log.info("callback_failed", job=errand.job, site=errand.site, reason=reason)
        again_in_s = max(delay_s, min(wait_s or 0.0, _MAX_WAIT_S))
        return Told(outcome=CallbackOutcome.RETRYING, reason=reason, again_in_s=again_in_s)
