"""What HTTP lets a shared cache store, ask and merge, decided by hishel (RFC 9111).

hishel sees one entry a key, with a max-age of our making: how long an answer stays fresh is the operator's
decision and none of its business.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import hishel

_OPTIONS: Final[hishel.CacheOptions] = {"shared": True, "supported_methods": ["GET"], "allow_stale": False}
_NO_ID: Final = UUID(int=0)
_URL: Final = "https://upstream.invalid/"


def refusal(asked: Mapping[str, str], told: Mapping[str, str]) -> str | None:
    """Why an answer with the headers `told` to a request with the headers `asked` must not be stored.

    None: it may be. Else "no-store", "private" or "vary", as Cache-Status says it.
    """
    return _refusal(tuple(asked.items()), _storage_directives(told), told.get("vary"))


# An upstream says the same in each of its answers.
@functools.lru_cache(64)
def _refusal(asked: tuple[tuple[str, str], ...], directives: str, vary: str | None) -> str | None:
    request = _request(dict(asked))
    headers = {"cache-control": ", ".join(filter(None, (directives, "max-age=60")))}
    fresh = hishel.Response(200, hishel.Headers(headers if vary is None else {"vary": vary, **headers}))
    if isinstance(hishel.CacheMiss(_OPTIONS, request).next(fresh), hishel.CouldNotBeStored):
        return "no-store" if "no-store" in directives.lower() else "private"
    # What varies on anything beyond the headers of our own making would not be found again.
    reuse = hishel.IdleClient(_OPTIONS).next(request, [hishel.Entry(_NO_ID, request, fresh)])
    return None if isinstance(reuse, hishel.FromCache) else "vary"


def conditional(asked: Mapping[str, str], etag: str | None) -> dict[str, str]:
    """The headers `asked`, asking only for what differs from the answer that has `etag`."""
    if etag is None:
        return dict(asked)
    stale = hishel.Response(200, hishel.Headers({"etag": etag, "cache-control": "max-age=0"}))
    state = hishel.IdleClient(_OPTIONS).next(_request(asked), [hishel.Entry(_NO_ID, _request(asked), stale)])
    assert isinstance(state, hishel.NeedRevalidation)  # noqa: S101  (max-age=0 leaves no other way)
    return dict(state.request.headers)


def merged(stored: Mapping[str, str], not_modified: Mapping[str, str]) -> Mapping[str, str]:
    """The headers of a stored answer after a 304 with the headers `not_modified` (RFC 9111 §3.2)."""
    request = _request({})
    entry = hishel.Entry(_NO_ID, request, hishel.Response(200, hishel.Headers(dict(stored))))
    state = hishel.NeedRevalidation(_OPTIONS, request, request, [entry]).next(
        hishel.Response(304, hishel.Headers(dict(not_modified)))
    )
    if isinstance(state, hishel.NeedToBeUpdated):
        return dict(state.updating_entries[0].response.headers)
    return stored


def _request(headers: Mapping[str, str]) -> hishel.Request:
    return hishel.Request("GET", _URL, hishel.Headers(dict(headers)))


def _storage_directives(told: Mapping[str, str]) -> str:
    """Cache-Control short of what would shorten the operator's freshness lifetime."""
    kept = (
        directive.strip()
        for directive in told.get("cache-control", "").split(",")
        if directive.strip().lower().partition("=")[0] in ("no-store", "private")
    )
    return ", ".join(kept)
