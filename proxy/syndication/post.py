"""What a CMS may send, and what becomes of it before a store is asked: checks, skip rules, canonical form."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from proxy.errors import Faulty
from proxy.syndication.document import json_path
from proxy.syntax import instant_text, is_language, is_uri

MAX_POST_BYTES: Final = 64 * 1024
MAX_FUTURE_S: Final = 365 * 86400
MAX_FAULTS: Final = 20
MAX_WARNINGS: Final = 20

# RFC 3339, with the zone that PHP writes without a colon.
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:?\d\d)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Control characters are no text; a NUL in a record makes it invisible to AppViews, without an error.
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNSAFE_IN_URL = re.compile(r"[\s\x00-\x20\x7f-\x9f\\<>\"{}|^`]")


def _absent_if_blank(value: object) -> object:
    """Many a CMS writes an empty string where it has nothing."""
    return None if isinstance(value, str) and not value.strip() else value


def _text(value: object) -> object:
    if not isinstance(value, str):
        return value
    return _CONTROL_IN_TEXT.sub("", value.replace("\r\n", "\n").replace("\r", "\n"))


def _name(value: str) -> str:
    if _CONTROL.search(value) or value != value.strip():
        raise ValueError("must not contain control characters nor begin or end with a space")
    return value


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or _UNSAFE_IN_URL.search(value) or not is_uri(value):
        raise ValueError("must be an absolute http:// or https:// URL")
    if "@" in urlsplit(value).netloc:
        raise ValueError("must not contain a user name or password")
    return value


def _language(value: str) -> str:
    if not is_language(value):
        raise ValueError("must be a language tag such as en or pt-BR")
    return value


def _not_empty(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("must name an account, or be absent for all of the site")
    return names


def _instant(value: object) -> object:
    if isinstance(value, datetime):
        return value
    match = _INSTANT.fullmatch(value) if isinstance(value, str) else None
    if match is None or not isinstance(value, str):
        raise ValueError("must be a date and time such as 2026-11-22T09:00:00Z (RFC 3339)")
    if match[2] is None:
        raise ValueError("must have a zone, such as Z or +02:00")
    try:
        instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a date and time that exists") from None
    if instant.year < 1970:
        raise ValueError("must not lie before 1970")
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)


_HTTP_URL_SCHEMA: Final = {"type": "string", "format": "uri", "pattern": "^https?://", "maxLength": 2048}

Id = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_name)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_name)]
Group = Annotated[str, StringConstraints(max_length=128), AfterValidator(_name)]
Title = Annotated[str, StringConstraints(max_length=1000)]
Text = Annotated[str, StringConstraints(max_length=10_000)]
AltText = Annotated[str, BeforeValidator(_text), StringConstraints(max_length=2000)]
Tag = Annotated[str, BeforeValidator(_text), StringConstraints(min_length=1, max_length=640)]
HttpUrl = Annotated[
    str, StringConstraints(max_length=2048), AfterValidator(_http_url), WithJsonSchema(_HTTP_URL_SCHEMA)
]
Language = Annotated[str, StringConstraints(max_length=64), AfterValidator(_language)]
AccountName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
# Not min_length, which would count what is left after wrong names are dropped, and report them twice.
AccountNames = Annotated[
    tuple[AccountName, ...],
    Field(max_length=100, json_schema_extra={"minItems": 1}),
    AfterValidator(_not_empty),
]
Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    PlainSerializer(instant_text, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Blankable = BeforeValidator(_absent_if_blank)
BlankableText = BeforeValidator(lambda value: _absent_if_blank(_text(value)))


class _Sent(BaseModel):
    """Part of a document from a CMS: strict types, unknown fields ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True)


class Image(_Sent):
    """A picture for the post."""

    url: HttpUrl = Field(description="Where the picture is; fetched when the post is published")
    alt: AltText = Field("", description="What the picture shows, for those who cannot see it")


class Post(_Sent):
    """A post as a CMS sends it to POST /syndicate. Build it with `parse_post`."""

    id: Id = Field(description="The CMS's immutable id; with the site it is the post's identity")
    url: HttpUrl = Field(description="Where the post can be read")
    title: Annotated[Title | None, BlankableText] = Field(None, description="Required unless `text` is given")
    text: Annotated[Text | None, BlankableText] = Field(
        None, description="The text to publish as it is, in place of the site's template"
    )
    excerpt: Annotated[Text | None, BlankableText] = None
    images: tuple[Image, ...] = Field(
        (), max_length=20, description="Shown instead of a card of the page; the first four of them"
    )
    langs: tuple[Language, ...] = Field((), max_length=3, description="Languages of the text (BCP 47)")
    tags: tuple[Tag, ...] = Field((), max_length=64)
    labels: tuple[Label, ...] = Field((), max_length=10, description="Self-labels, such as `nudity`")
    status: Label = Field("publish", description="State in the CMS; all but `publish` is not syndicated")
    previous_status: Annotated[Label | None, Blankable] = None
    syndicate: bool = True
    thread: bool = False
    published_at: Instant = Field(
        description="First publication, with a zone. In the future, at most a year: the job waits until then"
    )
    revision: Annotated[int, Field(ge=0, le=2**53)] | None = Field(
        None, description="Counts up with each edit; an older one never replaces a newer one"
    )
    group: Annotated[Group | None, Blankable] = Field(
        None, description="Name under which jobs can be listed together"
    )
    priority: Literal["normal", "urgent"] = "normal"
    accounts: AccountNames | None = Field(
        None, description="Which of the site's accounts; all of them if absent"
    )
    callback_url: Annotated[HttpUrl | None, Blankable] = None

    @model_validator(mode="after")
    def _says_something(self) -> Post:
        if self.title is None and self.text is None:
            raise ValueError("give a title or a text")
        return self

    @property
    def published_at_ms(self) -> int:
        """First publication in milliseconds since 1970."""
        return (self.published_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)

    @property
    def wanted(self) -> bool:
        """Whether the CMS wants the post to be syndicated as it stands now."""
        return self.status == "publish" and self.syndicate

    def canonical(self) -> str:
        """The post as JSON: one text for all ways to send the same, which `restore_post` reads again."""
        document = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    def payload_hash(self) -> str:
        """SHA-256 of the canonical form, in hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def url_hash(self) -> str:
        """SHA-256 of `url`, in hexadecimal; tells a reused id from an edit."""
        return hashlib.sha256(self.url.encode()).hexdigest()


def parse_post(document: Any, *, now: float) -> tuple[Post, tuple[str, ...]]:
    """The post in `document`, and warnings that name unknown fields. `now` in seconds since 1970.

    Raises Faulty (422 invalid_post) with the place of each fault.
    """
    try:
        # JSON mode: strict about types, and an array is a tuple.
        post = Post.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        raise _faulty(error) from None
    if post.published_at.timestamp() > now + MAX_FUTURE_S:
        message = "must not lie more than a year in the future"
        raise Faulty("invalid_post", "the post breaks a rule", (("$.published_at", message),))
    return post, tuple(_unknown_fields(document))


def restore_post(canonical: str) -> Post:
    """The post of which `canonical` is the canonical form. Raises Faulty when it is none."""
    try:
        return Post.model_validate_json(canonical, strict=True)
    except ValidationError as error:
        raise _faulty(error) from None


class Skip(enum.StrEnum):
    """Why an unknown post is not syndicated."""

    NOT_PUBLISHED = "not_published"  # its status is another than publish
    SWITCHED_OFF = "switched_off"  # syndicate is false
    ALREADY_PUBLISHED = "already_published"  # it was public before feedproxy heard of it
    TOO_OLD = "too_old"  # first published more than MAX_POST_AGE_DAYS ago


def skip_reason(post: Post, now: float, max_age_s: float) -> Skip | None:
    """Why `post`, if its identity is unknown, is not syndicated; None if it is. Seconds since 1970."""
    if post.status != "publish":
        return Skip.NOT_PUBLISHED
    if not post.syndicate:
        return Skip.SWITCHED_OFF
    if post.previous_status == "publish":
        return Skip.ALREADY_PUBLISHED
    if post.published_at_ms < (now - max_age_s) * 1000:
        return Skip.TOO_OLD
    return None


def host_allowed(url: str, hosts: Sequence[str]) -> bool:
    """Whether `url` points to one of `hosts` (names, with a port where it is not the scheme's own)."""
    if not hosts:
        return True
    parts = urlsplit(url)
    name = (parts.hostname or "").rstrip(".")
    with contextlib.suppress(UnicodeError):
        name = name.encode("idna").decode("ascii")
    name = f"[{name}]" if ":" in name else name
    own_port = {"http": 80, "https": 443}[parts.scheme]
    port = parts.port or own_port
    return f"{name}:{port}" in hosts or (port == own_port and name in hosts)


def _faulty(error: ValidationError) -> Faulty:
    faults = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False)[:MAX_FAULTS]:
        # What is wrong with the post as a whole is mended at its title.
        path = json_path(fault["loc"] if fault["loc"] or fault["type"] != "value_error" else ("title",))
        faults.append((path, fault["msg"].removeprefix("Value error, ")))
    return Faulty("invalid_post", "the post breaks a rule", tuple(faults))


def _unknown_fields(document: dict[str, Any]) -> Iterator[str]:
    places: list[tuple[int | str, ...]] = [(name,) for name in document if name not in Post.model_fields]
    for index, image in enumerate(document.get("images") or ()):
        places.extend(("images", index, name) for name in image if name not in Image.model_fields)
    for place in places[:MAX_WARNINGS]:
        yield f"{json_path(place)} is not known and was ignored"
    if len(places) > MAX_WARNINGS:
        yield f"{len(places) - MAX_WARNINGS} more fields are not known and were ignored"
