"""Errors of the write path as application/problem+json (RFC 9457), each with a code that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from proxy.errors import Faulty, Rejected

MEDIA_TYPE: Final = "application/problem+json"

# Code -> status and what it means; the OpenAPI document lists them.
CODES: Final[Mapping[str, tuple[int, str]]] = {
    "unauthorized": (401, "no bearer token, or one that belongs to no site"),
    "account_not_allowed": (403, "`accounts` names one that is not the site's"),
    "not_found": (404, "no such job, or it is another site's"),
    "method_not_allowed": (405, "the method is not possible here; `Allow` says which are"),
    "id_reused": (409, "the id belongs to another post; the site's ids are not immutable"),
    "nothing_to_retry": (409, "no account of the job has failed or waits for credentials"),
    "nothing_to_cancel": (409, "all accounts of the job are done, or are being sent to right now"),
    "too_large": (413, "the body is larger than allowed"),
    "unsupported_media_type": (415, "the body must be application/json"),
    "invalid_json": (422, "the body is no JSON, or its meaning is ambiguous"),
    "invalid_post": (422, "fields break a rule; `errors` says which"),
    "invalid_batch": (422, "the body is no array of 1 to 100 posts"),
    "invalid_parameter": (422, "a parameter of the query breaks a rule"),
    "invalid_idempotency_key": (422, "Idempotency-Key must be 1 to 255 printable ASCII characters"),
    "idempotency_key_reused": (422, "Idempotency-Key was used for another payload within 24 hours"),
    "host_not_allowed": (422, "`url` or `callback_url` points to a host that is not the site's"),
    "too_many_failures": (429, "too many wrong tokens came from this address"),
    "too_many_waiting": (429, "the site's `max_waiting` posts are waiting already"),
    "too_many_streams": (429, "the site holds too many long polls and event streams"),
    "store_unavailable": (
        503,
        "the queue cannot be reached: nothing was stored, as far as is known; send it again",
    ),
    "store_full": (503, "the queue is there and takes nothing; send it again later"),
}


class FaultShown(BaseModel):
    """One fault of a document."""

    model_config = ConfigDict(title="Fault")

    path: str = Field(description="JSONPath of the place (RFC 9535)")
    message: str


class Problem(BaseModel):
    """An error: RFC 9457 with `code`, and `errors` where the document is at fault."""

    type: str = Field(default="about:blank", description="Always about:blank; `code` tells errors apart")
    title: str = Field(description="The phrase of the status")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="A sentence for the person who can act on it")
    code: str = Field(json_schema_extra={"enum": list(CODES)})
    errors: list[FaultShown] = Field(default_factory=list, description="Each fault, with its place")


def problem_of(error: Rejected) -> dict[str, Any]:
    """The JSON document that tells of `error`."""
    faults = error.faults if isinstance(error, Faulty) else ()
    problem = Problem(
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.message,
        code=error.code,
        errors=[FaultShown(path=path, message=message) for path, message in faults],
    )
    return problem.model_dump(mode="json")


def problem_response(error: Rejected) -> JSONResponse:
    """The answer that tells of `error`."""
    return JSONResponse(
        problem_of(error),
        status_code=error.status,
        media_type=MEDIA_TYPE,
        headers={**dict(error.headers), "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )
