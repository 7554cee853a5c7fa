"""Questions put to the read path by a page of ours, through the edge that everybody uses.

So whatever holds for feeds (who may be asked for, how often, by whom) holds for the pages that show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope

# They concern the bytes of the page, not those of the feed it is made of.
_OF_THE_PAGE: Final = frozenset(
    {b"accept", b"accept-encoding", b"if-none-match", b"if-modified-since", b"range", b"content-length"}
)


@dataclass(slots=True)
class InnerAnswer:
    """What the read path answered: `body` is as the upstream sent it, without a coding."""

    status: int = 500
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""


async def ask(
    feeds: ASGIApp, scope: Scope, receive: Receive, nsid: str, parameters: Mapping[str, str]
) -> InnerAnswer:
    """The answer of `feeds`, the application under /xrpc, to the client whose request `scope` is."""
    answer = InnerAnswer()
    path = f"/xrpc/{nsid}"
    inner = {
        **scope,
        "method": "GET",
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": urlencode(parameters).encode("ascii"),
        "headers": [(name, value) for name, value in scope["headers"] if name not in _OF_THE_PAGE],
    }

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = Headers(raw=list(message["headers"]))
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")

    await feeds(inner, receive, send)
    return answer
