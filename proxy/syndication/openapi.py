"""The operations of the write path as a table: routes are made from it, and the OpenAPI 3.1 document.

Schemas come from the models that check and write the documents, so neither can drift from what happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from proxy.syndication.intake import MAX_BATCH
from proxy.syndication.job import Status
from proxy.syndication.post import MAX_POST_BYTES, Post
from proxy.syndication.problems import CODES, MEDIA_TYPE, Problem
from proxy.syndication.shown import BatchShown, JobShown, PageShown, RememberedShown, SkippedShown
from proxy.version import VERSION

MAX_WAIT_S: Final = 60
MAX_PAGE: Final = 100
DEFAULT_PAGE: Final = 50
JOB_ID: Final = "[A-Za-z0-9_-]{1,64}"
CURSOR: Final = "[A-Za-z0-9_.:~=-]{1,200}"
MAX_BATCH_BYTES: Final = 1024 * 1024

_REF: Final = "#/components/schemas/{model}"
# What every operation with a token and the store may answer.
_ALWAYS: Final = (
    "unauthorized",
    "method_not_allowed",
    "too_many_failures",
    "store_unavailable",
    "store_full",
)
_SENDING: Final = (
    *("account_not_allowed", "id_reused", "too_large", "unsupported_media_type", "invalid_json"),
    *("invalid_post", "invalid_idempotency_key", "idempotency_key_reused", "host_not_allowed"),
    "too_many_waiting",
)
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One good answer: its documents are one of `models`; `located`: with a Location header."""

    text: str
    models: tuple[type[BaseModel], ...] = ()
    media_type: str = _JSON
    located: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `problems` are codes of its own, besides those of every operation."""

    id: str
    method: str
    path: str
    summary: str
    replies: Mapping[int, Reply]
    problems: tuple[str, ...]
    parameters: tuple[Mapping[str, Any], ...] = ()
    body: Mapping[str, Any] | None = None


def _query(name: str, text: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


_JOB: Final = {
    "name": "job",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{JOB_ID}$"},
}
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Replays the stored answer for 24 hours; scoped to the site. Without it, id, revision and "
    "payload are the key",
    "schema": {"type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
}
_LAST_EVENT: Final = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "Sent by clients that reconnect; a job that was over by then is answered 204",
    "schema": {"type": "string"},
}
_EVENT: Final = {
    "type": "object",
    "properties": {
        "event": {"const": "status"},
        "id": {"type": "string"},
        "data": {
            "type": "string",
            "contentMediaType": _JSON,
            "contentSchema": {"$ref": _REF.format(model="JobShown")},
        },
    },
}
_POST_REF: Final = {"$ref": _REF.format(model="Post")}
_SHOWN: Final = Reply(text="The job as it is now", models=(JobShown,))

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        id="syndicate",
        method="POST",
        path="/syndicate",
        summary="Send a post",
        replies={
            200: Reply(
                text="Skipped; or, while the queue is away, published at once",
                models=(SkippedShown, RememberedShown),
            ),
            202: Reply(text="Taken in", models=(JobShown, RememberedShown), located=True),
        },
        problems=_SENDING,
        parameters=(_KEY,),
        body=_POST_REF,
    ),
    Operation(
        id="syndicate_batch",
        method="POST",
        path="/syndicate/batch",
        summary=f"Send up to {MAX_BATCH} posts, {MAX_POST_BYTES // 1024} KiB each",
        replies={200: Reply(text="A result for each post", models=(BatchShown,))},
        problems=(
            *("too_large", "unsupported_media_type", "invalid_json", "invalid_batch"),
            "invalid_idempotency_key",
        ),
        parameters=(_KEY,),
        body={"type": "array", "items": _POST_REF, "minItems": 1, "maxItems": MAX_BATCH},
    ),
    Operation(
        id="list_jobs",
        method="GET",
        path="/syndicate",
        summary="The site's jobs, newest first",
        replies={200: Reply(text="A page of jobs", models=(PageShown,))},
        problems=("invalid_parameter",),
        parameters=(
            _query(
                "status",
                "Only jobs of this status",
                {
                    "type": "string",
                    "enum": ["", *(status for status in Status if status is not Status.SKIPPED)],
                },
            ),
            _query("group", "Only jobs of this group", {"type": "string", "maxLength": 128}),
            _query("cursor", "From the page before", {"type": "string", "pattern": f"^({CURSOR})?$"}),
            _query(
                "limit",
                "Jobs on a page",
                {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
            ),
        ),
    ),
    Operation(
        id="get_job",
        method="GET",
        path="/syndicate/{job}",
        summary="A job; with `wait` as soon as its status changes",
        replies={200: _SHOWN},
        problems=("not_found", "invalid_parameter", "too_many_streams"),
        parameters=(
            _JOB,
            _query(
                "wait",
                "Seconds to wait for a change (long poll)",
                {"type": "integer", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0},
            ),
        ),
    ),
    Operation(
        id="follow_job",
        method="GET",
        path="/syndicate/{job}/events",
        summary="The job at each change as server-sent events named `status`, until it is over",
        replies={
            200: Reply(text="Events whose data is a Job", media_type="text/event-stream"),
            204: Reply(text="The job was over when the client reconnected"),
        },
        problems=("not_found", "too_many_streams"),
        parameters=(_JOB, _LAST_EVENT),
    ),
    Operation(
        id="retry_job",
        method="POST",
        path="/syndicate/{job}/retry",
        summary="Try again what has failed, a callback too, and what waits for credentials",
        replies={202: Reply(text="The job, waiting again", models=(JobShown,), located=True)},
        problems=("not_found", "nothing_to_retry"),
        parameters=(_JOB,),
    ),
    Operation(
        id="cancel_job",
        method="DELETE",
        path="/syndicate/{job}",
        summary="Cancel what has not been sent",
        replies={200: _SHOWN},
        problems=("not_found", "nothing_to_cancel"),
        parameters=(_JOB,),
    ),
)

# Headers of problems, by status.
_PROBLEM_HEADERS: Final[Mapping[int, tuple[str, str]]] = MappingProxyType(
    {
        401: ("WWW-Authenticate", "Bearer"),
        405: ("Allow", "The methods that are possible"),
        429: ("Retry-After", "Seconds to wait"),
        503: ("Retry-After", "Seconds to wait"),
    }
)


def openapi_document(public_url: str | None = None) -> dict[str, Any]:
    """The OpenAPI document of the write path; `public_url` is how the world reaches this server."""
    _, shown = models_json_schema([(model, "serialization") for model in _models()], ref_template=_REF)
    _, sent = models_json_schema([(Post, "validation")], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "feedproxy: posting to Bluesky",
            "version": VERSION,
            "description": "A post is answered in milliseconds and appears on each account exactly once, "
            "or its failure is visible and can be retried.",
        },
        "paths": paths,
        "components": {
            "schemas": {**shown["$defs"], **_post_schemas(sent["$defs"])},
            "securitySchemes": {
                "site": {"type": "http", "scheme": "bearer", "description": "A token of feedproxy.toml"}
            },
        },
        "security": [{"site": []}],
    }
    if public_url is not None:
        document["servers"] = [{"url": public_url}]
    return document


def _models() -> list[type[BaseModel]]:
    """The models of all answers, each once."""
    models: dict[type[BaseModel], None] = {Problem: None}
    for operation in OPERATIONS:
        for reply in operation.replies.values():
            models.update(dict.fromkeys(reply.models))
    return list(models)


def _post_schemas(schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas of what is sent, with the rule that no single field can express."""
    post = dict(schemas["Post"])
    post["anyOf"] = [
        {"required": [name], "properties": {name: {"type": "string", "pattern": r"\S"}}}
        for name in ("title", "text")
    ]
    return {**schemas, "Post": post}


def _described(operation: Operation) -> dict[str, Any]:
    answers = {str(status): _good(reply) for status, reply in operation.replies.items()}
    codes: dict[int, list[str]] = {}
    for code in (*_ALWAYS, *operation.problems):
        codes.setdefault(CODES[code][0], []).append(code)
    for status in sorted(codes):
        answers[str(status)] = _bad(status, codes[status])
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": list(operation.parameters),
        "responses": answers,
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {_JSON: {"schema": operation.body}}}
    return described


def _good(reply: Reply) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": reply.text}
    refs = [{"$ref": _REF.format(model=model.__name__)} for model in reply.models]
    if refs:
        answer["content"] = {reply.media_type: {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}}
    elif reply.media_type != _JSON:
        answer["content"] = {reply.media_type: {"schema": _EVENT}}
    if reply.located:
        answer["headers"] = {"Location": {"description": "The job", "schema": {"type": "string"}}}
    return answer


def _bad(status: int, codes: list[str]) -> dict[str, Any]:
    meanings = "; ".join(f"`{code}`: {CODES[code][1]}" for code in codes)
    answer: dict[str, Any] = {
        "description": meanings,
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
    if status in _PROBLEM_HEADERS:
        name, text = _PROBLEM_HEADERS[status]
        answer["headers"] = {name: {"description": text, "schema": {"type": "string"}, "required": True}}
    return answer
