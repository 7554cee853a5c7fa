"""Files that never change while the process runs: compressed once, with a tag and a life in caches."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import brotli
from starlette.requests import Request
from starlette.responses import Response

from proxy.feeds.headers import accepted_coding, etag_matches

# A browser that cannot reach us goes on with the copy it has, for a week.
SHORT_LIVED: Final = "public, max-age=300, stale-while-revalidate=604800, stale-if-error=604800"
IMMUTABLE: Final = "public, max-age=31536000, immutable"
NOT_KEPT: Final = "no-store"


@dataclass(frozen=True)
class Asset:
    """A file of `media_type`."""

    content: bytes
    media_type: str

    @cached_property
    def bodies(self) -> Mapping[str, bytes]:
        """The file in each coding, as small as can be. Takes a tenth of a second: not for the loop."""
        return {
            "identity": self.content,
            "br": brotli.compress(self.content, quality=11),
            "gzip": gzip.compress(self.content, compresslevel=9, mtime=0),
        }

    async def response(self, request: Request, cache_control: str) -> Response:
        """The answer to a GET or HEAD. Pages of any origin may load it, also with an integrity hash."""
        bodies = await asyncio.to_thread(lambda: self.bodies)
        coding = accepted_coding(request.headers.get("accept-encoding"), bodies)
        etag = f'"{hashlib.sha256(self.content).hexdigest()[:24]}-{coding}"'
        headers = {
            "access-control-allow-origin": "*",
            "cache-control": cache_control,
            "cross-origin-resource-policy": "cross-origin",
            "etag": etag,
            "vary": "Accept-Encoding",
            "x-content-type-options": "nosniff",
        }
        if etag_matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        if coding != "identity":
            headers["content-encoding"] = coding
        body = bodies[coding]
        headers |= {"content-type": self.media_type, "content-length": str(len(body))}
        return Response(b"" if request.method == "HEAD" else body, headers=headers)
