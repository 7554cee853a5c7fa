"""Every error of the project, in one tree sorted by what the caller should do about it."""

from __future__ import annotations


class FeedproxyError(Exception):
    """Root of the tree; its message is a sentence for the person who can act on it."""


class UsageError(FeedproxyError):
    """Whoever runs feedproxy must correct a setting or a command: exit code 2."""


class OperationalError(FeedproxyError):
    """Something on this host must be put right before feedproxy can work: exit code 1."""


class Rejected(FeedproxyError):
    """A client's request cannot be answered as it stands: a 4xx, in the shape of XRPC errors.

    `code` is the XRPC error name, `headers` are added to the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


class UpstreamError(FeedproxyError):
    """The upstream gave no usable answer: serve a stored copy, or else this error, and try again later.

    `code` and `status` are what a client without a copy is told. `upstream_status` is the status that the
    upstream sent, if it sent one. `retry_after_s` is when trying again makes sense, if known.
    """

    code = "UpstreamFailure"
    status = 502

    def __init__(
        self, message: str, *, upstream_status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.upstream_status = upstream_status
        self.retry_after_s = retry_after_s


class UpstreamFailure(UpstreamError):
    """The upstream answered with an error, or with something that is no answer of an AppView."""


class UpstreamUnavailable(UpstreamError):
    """We do not ask the upstream now: breaker open, budget spent, told to wait, or too many waiters."""

    code = "UpstreamUnavailable"
    status = 503


class UpstreamTimeout(UpstreamError):
    """The upstream did not answer within the flight's deadline."""

    code = "UpstreamTimeout"
    status = 504


class StoreError(FeedproxyError):
    """The shared store did not do as asked: go on without it."""


class StoreUnavailable(StoreError):
    """The shared store cannot be reached, is loading, or did not answer in time."""


class StoreRefused(StoreError):
    """The shared store is there and said no: out of memory, read-only, not permitted."""
