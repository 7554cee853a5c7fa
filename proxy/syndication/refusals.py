"""What the intake refuses, and what it says then."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from proxy.errors import NewerFormat, Rejected, StoreRefused, StoreUnavailable

# How long a CMS should wait before it sends again.
RETRY_STORE_S: Final = 10
RETRY_FULL_S: Final = 60


def too_large(limit_bytes: int) -> Rejected:
    """The answer to a body, or a post in a batch, that exceeds `limit_bytes`."""
    return Rejected(413, "too_large", f"a body may have {limit_bytes} bytes")


@contextlib.asynccontextmanager
async def store_errors() -> AsyncIterator[None]:
    """Turn the store's errors into answers."""
    try:
        yield
    except StoreUnavailable:
        raise store_away() from None
    except NewerFormat:
        raise newer_job() from None
    except StoreRefused:
        raise store_full() from None


def id_reused() -> Rejected:
    """The id of another post."""
    return Rejected(
        409,
        "id_reused",
        "this id belongs to another post, with another url and an earlier publication; send ids that are "
        "never used again, or give this CMS a site of its own in feedproxy.toml",
    )


def key_reused() -> Rejected:
    """An Idempotency-Key with another payload than before."""
    return Rejected(422, "idempotency_key_reused", "this Idempotency-Key was used for another payload")


def too_many_waiting() -> Rejected:
    """The site's max_waiting."""
    return _waits(429, "too_many_waiting", "too many posts of this site are waiting", RETRY_FULL_S)


def store_away() -> Rejected:
    """No queue: nothing was stored, as far as is known."""
    return _waits(503, "store_unavailable", "the queue cannot be reached; send the post again", RETRY_STORE_S)


def newer_job() -> Rejected:
    """A job that another process can show, as while the fleet is being upgraded."""
    message = "a later version of feedproxy has this job, which this process cannot show yet; ask again"
    return _waits(503, "store_unavailable", message, RETRY_STORE_S)


def store_full() -> Rejected:
    """A queue that says no."""
    return _waits(
        503, "store_full", "the queue takes nothing at the moment; send the post again", RETRY_FULL_S
    )


def _waits(status: int, code: str, message: str, retry_after_s: int) -> Rejected:
    return Rejected(status, code, message, (("Retry-After", str(retry_after_s)),))
