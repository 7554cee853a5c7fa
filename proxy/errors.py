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


class Faulty(Rejected):
    """A client's document breaks the rules: a 422 that names each place, in the shape of RFC 9457 problems.

    `faults` are pairs of a JSONPath and a sentence; no value of a tenant stands in them unescaped.
    """

    def __init__(self, code: str, message: str, faults: tuple[tuple[str, str], ...]) -> None:
        super().__init__(422, code, message)
        self.faults = faults


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

    def bare(self, retry_after_s: float | None = None) -> UpstreamError:
        """The same error without its traceback, to be kept: a traceback holds every body on its way."""
        return type(self)(
            self.message,
            upstream_status=self.upstream_status,
            retry_after_s=self.retry_after_s if retry_after_s is None else retry_after_s,
        )


class UpstreamFailure(UpstreamError):
    """The upstream answered with an error, or with something that is no answer of an AppView."""


class UpstreamUnavailable(UpstreamError):
    """We do not ask the upstream now: breaker open, budget spent, told to wait, or too many waiters."""

    code = "UpstreamUnavailable"
    status = 503


class BudgetSpent(UpstreamUnavailable):
    """More is asked of the upstream than it is asked for in a second: no turn comes in time."""


class ShareSpent(UpstreamUnavailable):
    """The client has caused as many upstream requests as one client may for now; others may ask."""

    code = "RateLimitExceeded"
    status = 429


class UpstreamTimeout(UpstreamError):
    """The upstream did not answer within the flight's deadline."""

    code = "UpstreamTimeout"
    status = 504


class PdsError(FeedproxyError):
    """A PDS, or the directory that leads to it, did not do as asked."""


class PdsUnreachable(PdsError):
    """No usable answer: whether the request was carried out is not known, and it may be repeated as it is.

    `sent` is False when it certainly never left: there was no connection.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, sent: bool = True) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.sent = sent


class PdsBusy(PdsError):
    """We are not to ask for `wait_s` seconds: a limit of theirs or of ours. Nothing was carried out."""

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class PdsRejected(PdsError):
    """The PDS refuses this request and will go on doing so. `code` is its XRPC error name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TokenRefused(PdsError):
    """The PDS does not take the token: refresh the session, or log in."""


class CredentialsRefused(PdsError):
    """The account cannot be used until a person sees to it: wrong password, suspended, gone.

    `code` is the XRPC error name, or one of our own.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OutsideError(FeedproxyError):
    """An address that a stranger named did not do as asked: go on without it. The message may be shown."""


class OutsideRefused(OutsideError):
    """It will not get better: an address that we do not connect to, a page that is gone, the wrong type."""


class OutsideFailed(OutsideError):
    """No answer, or a server in trouble: another attempt may succeed. `retry_after_s`: not before, if told.

    `sent` is False when the request certainly never left.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, sent: bool = True) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.sent = sent


class StoreError(FeedproxyError):
    """The shared store did not do as asked: go on without it."""


class StoreUnavailable(StoreError):
    """The shared store cannot be reached, is loading, or did not answer in time."""


class StoreRefused(StoreError):
    """The shared store is there and said no: out of memory, read-only, not permitted."""


class NewerFormat(StoreError):
    """What is stored is sound, and of a later version of feedproxy."""


class LeaseLost(FeedproxyError):
    """The delivery is another worker's by now, or canceled: drop the attempt, nothing may be sent."""


class Superseded(LeaseLost):
    """The post was edited after the lease began: give it back, it comes again with the edit."""
