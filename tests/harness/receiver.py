"""A CMS that is called back: it checks each signature with the reference library, and answers as told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from standardwebhooks import Webhook

from harness.pds import Call
from harness.stranger import Stranger
from harness.upstream import Response

PAGE = b'<html><head><title>A page</title><meta property="og:title" content="Its title"></head></html>'


def taken(_call: Call) -> Response:
    """The answer of a CMS that is content."""
    return Response(204)


class Receiver(Stranger):
    """`heard` is all that came, verified with `secret`: webhook-id and document. What is got of it is a page.

    `answer` decides what it says when it is called.
    """

    def __init__(self, secret: str) -> None:
        super().__init__()
        self.secret = secret
        self.answer: Callable[[Call], Response] = taken
        self.heard: list[tuple[str, dict[str, Any]]] = []

    @property
    def hook(self) -> str:
        """Where it wants to be called."""
        return f"{self.url}/hook"

    async def respond(self, call: Call) -> Response:
        if call.method != "POST":
            return Response(200, body=PAGE, headers={"Content-Type": "text/html"})
        Webhook(self.secret).verify(call.body, call.headers)
        self.heard.append((call.headers["webhook-id"], json.loads(call.body)))
        return self.answer(call)
