"""One HTTP exchange with a server of the network, bounded in time and size, and what it said as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from pydantic_core import from_json

from proxy.bluesky.transport import within
from proxy.clock import Clock
from proxy.errors import PdsUnreachable
from proxy.resilience.backoff import told_to_wait

MAX_ANSWER_BYTES: Final = 2 * 1024 * 1024
REQUEST_TIMEOUT_S: Final = 10.0

_MAX_QUOTED_CHARS: Final = 300
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answered.

    `document` is the JSON object it sent, None if it sent something else. `wait_s` is for how long it wants
    not to be asked, if it said so. `token` is the one it was shown: a server may repeat what it was told.
    """

    status: int
    document: Mapping[str, Any] | None
    wait_s: float | None
    token: str = field(default="", repr=False)

    @property
    def error(self) -> str:
        """The XRPC error name, empty if it is none."""
        return self._text("error") if self.status >= 400 else ""

    @property
    def message(self) -> str:
        """The XRPC error message as it may be shown: printable, of bounded length, without the token."""
        said = self._text("message")
        said = said.replace(self.token, "********") if self.token else said
        shown = "".join(char if char.isprintable() else " " for char in said)
        return shown if len(shown) <= _MAX_QUOTED_CHARS else f"{shown[:_MAX_QUOTED_CHARS]}…"

    def text(self, name: str) -> str | None:
        """A member of the document that is a string and not empty."""
        return self._text(name) or None

    def _text(self, name: str) -> str:
        value = (self.document or {}).get(name)
        return value if isinstance(value, str) else ""


class Wire:
    """Sends requests. No request is repeated here, and no redirect followed."""

    def __init__(self, client: httpx.AsyncClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def send(
        self,
        method: str,
        url: str,
        *,
        deadline: float,
        params: Mapping[str, str] | None = None,
        token: str | None = None,
        content: bytes | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """Send one request and read its answer by the steady instant `deadline`, or within 10 s if sooner.

        `token` is a bearer token, `content` a JSON document unless `content_type` says otherwise. Must not be
        canceled. Raises PdsUnreachable when there is no answer; neither it nor its cause tells what was sent.
        """
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        if content is not None:
            headers["content-type"] = content_type
        until = min(deadline, self._clock.steady() + REQUEST_TIMEOUT_S)
        try:
            async with self._client.stream(
                method, url, params=params, headers=headers, content=content, extensions=within(until)
            ) as response:
                body = await _read(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = f"{_host(url)} did not answer ({type(error).__name__})"
            raise PdsUnreachable(message, sent=not isinstance(error, _NEVER_SENT)) from None
        told = {name.lower(): value for name, value in response.headers.items()}
        return Answer(
            status=response.status_code,
            document=_json_object(body),
            wait_s=told_to_wait(response.status_code, told, wall_now=self._clock.wall()),
            token=token or "",
        )


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise httpx.RemoteProtocolError("the answer is too large")
    return bytes(body)


def _json_object(body: bytes) -> Mapping[str, Any] | None:
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _host(url: str) -> str:
    return httpx.URL(url).host or "the server"
