"""Server-sent events: how a stream begins, tells and ends, and how one knows that nobody listens any more."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.types import Receive, Send

# A comment, so that nothing on the way takes the stream for dead.
STILL_HERE: Final = ": still here\n\n"

_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
)
_RETRY_MS: Final = 3000


async def begin(send: Send) -> None:
    """Begin the answer; who loses it comes back after three seconds."""
    await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
    await tell(send, f"retry: {_RETRY_MS}\n\n")


async def tell(send: Send, text: str) -> None:
    """Send one event, or a comment."""
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def end(send: Send) -> None:
    """End the answer."""
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(name: str, event_id: str, document: object) -> str:
    """An event of which `document` is the data."""
    # One line: JSON escapes what would end it.
    data = json.dumps(document, ensure_ascii=True, separators=(",", ":"))
    return f"event: {name}\nid: {event_id}\ndata: {data}\n\n"


@contextlib.asynccontextmanager
async def disconnected(receive: Receive) -> AsyncIterator[asyncio.Future[Any]]:
    """A future that is done once the client of a request, whose body was read or ignored, has gone."""
    gone = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        yield gone
    finally:
        gone.cancel()
        await asyncio.wait((gone,))


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
