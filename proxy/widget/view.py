"""A feed as it is shown: from an answer of the AppView to what the templates need, and nothing else.

What cannot be read is left out: a post, or the broken part of one. The rules are those of static/widget.js.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final, Literal

from proxy.widget import foreign
from proxy.widget.foreign import MAX_NAME_BYTES, WEB, Segment, field, items, kind

_HIDDEN: Final = frozenset({"!hide", "!takedown", "!no-unauthenticated"})
_ADULT: Final = frozenset({"porn", "sexual", "nudity", "graphic-media", "gore", "nsfl"})
_MAX_PICTURES: Final = 20
_MAX_ALT_BYTES: Final = 2000
_MAX_TITLE_BYTES: Final = 1000

Cover = Literal["", "adult", "warn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Somebody. `hidden`: not to be shown to readers without a login, or to nobody."""

    did: str
    handle: str
    name: str
    avatar: str
    hidden: bool

    @property
    def href(self) -> str:
        """The account's page."""
        return f"{WEB}/profile/{self.did}"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what it links to; width and height are 0 if they are not known."""

    src: str
    href: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Pictures:
    """One picture or several."""

    kind: ClassVar = "pictures"
    pictures: tuple[Picture, ...]

    @property
    def arrangement(self) -> str:
        """How so many are laid out: the class of their frame."""
        return {1: "one", 2: "two", 3: "three", 4: "many"}.get(len(self.pictures), "lots")


@dataclass(frozen=True, slots=True)
class Card:
    """A link with a title, as an external page, a feed or a list is shown."""

    kind: ClassVar = "card"
    href: str
    host: str
    title: str
    about: str
    thumb: str


@dataclass(frozen=True, slots=True)
class Video:
    """A video, of which the poster is shown (without src: an empty frame)."""

    kind: ClassVar = "video"
    poster: Picture


@dataclass(frozen=True, slots=True)
class Gone:
    """A quote that is not to be seen; `why` names the words for it."""

    kind: ClassVar = "gone"
    why: Literal["gone", "members"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """Text and attachments; under a `cover` unless that is empty."""

    cover: Cover
    text: tuple[Segment, ...]
    language: str
    embeds: tuple[Embed, ...]

    def __bool__(self) -> bool:
        return bool(self.text or self.embeds)


@dataclass(frozen=True, slots=True)
class Quote:
    """A post within a post."""

    kind: ClassVar = "quote"
    author: Account
    href: str
    at: datetime | None
    body: Body


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What only Bluesky can show, there."""

    kind: ClassVar = "elsewhere"
    href: str


Embed = Pictures | Card | Video | Quote | Gone | Elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A post in a feed. `reply_to` is None where it is a reply to somebody who is not to be named."""

    author: Account
    href: str
    at: datetime | None
    pinned: bool
    reposter: str
    reply: bool
    reply_to: tuple[str, str] | None  # name and address
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """A feed, and the account it belongs to if it is one account's."""

    owner: Account | None
    posts: tuple[Post, ...]


class _Unreadable(Exception):
    """What cannot be shown."""


def feed_view(document: Any, *, actor: str | None, limit: int) -> Feed:
    """At most `limit` posts of an answer to getAuthorFeed (of `actor`), getFeed or getListFeed."""
    given = items(field(document, "feed"))
    owner = _owner(given, actor) if actor is not None else None
    if owner is not None and owner.hidden:
        return Feed(owner=owner, posts=())
    posts: list[Post] = []
    seen: set[tuple[object, object]] = set()
    for item in given:
        if len(posts) >= limit:
            break
        uri, reposter = field(item, "post", "uri"), field(item, "reason", "by", "did")
        key = (str(uri), reposter if isinstance(reposter, str) else "")
        try:
            post = None if key in seen else _post(item)
        except _Unreadable:
            continue
        seen.add(key)
        if post is not None:
            posts.append(post)
    return Feed(owner=owner, posts=tuple(posts))


def _owner(given: list[Any], actor: str) -> Account | None:
    """The account that `actor` names, as the posts themselves show it."""
    for item in given:
        for view in (field(item, "post", "author"), field(item, "reason", "by")):
            named = foreign.handle(field(view, "handle")).lower() == actor.lower()
            if foreign.did(field(view, "did")) and (named or field(view, "did") == actor):
                return _account(view)
    return None


def _account(view: Any) -> Account:
    did = foreign.did(field(view, "did"))
    if not did:
        raise _Unreadable
    labels = foreign.labels_of(view)
    handle = foreign.handle(field(view, "handle"))
    name = foreign.text(field(view, "displayName"), MAX_NAME_BYTES)
    return Account(
        did=did,
        handle=handle,
        name=name if foreign.visible(name) else handle or did,
        avatar="" if _cover(labels) else foreign.http_url(field(view, "avatar")),
        hidden=bool(labels & _HIDDEN),
    )


def _cover(labels: frozenset[str]) -> Cover:
    if labels & _ADULT:
        return "adult"
    return "warn" if "!warn" in labels else ""


def _post(item: Any) -> Post | None:
    post = field(item, "post")
    record = field(post, "record")
    author = _account(field(post, "author"))
    labels = foreign.labels_of(post, record, field(post, "author"))
    href = foreign.web_address(field(post, "uri"))
    if not href or labels & _HIDDEN:
        return None
    reason = field(item, "reason")
    reposter = _account(field(reason, "by")) if kind(reason) == "reasonRepost" else None
    if reposter is not None and reposter.hidden:
        return None
    reply = _truthy(field(record, "reply"))
    return Post(
        author=author,
        href=href,
        at=foreign.earliest(field(record, "createdAt"), field(post, "indexedAt")),
        pinned=kind(reason) == "reasonPin",
        reposter=reposter.name if reposter else "",
        reply=reply,
        reply_to=_reply_to(item) if reply else None,
        body=_body(labels, record, _attached(post, record, href)),
    )


def _truthy(value: Any) -> bool:
    """Whether JavaScript takes it for true."""
    return isinstance(value, Mapping | list) or bool(value)


def _reply_to(item: Any) -> tuple[str, str] | None:
    parent = field(item, "reply", "parent")
    try:
        account = _account(field(parent, "author"))
    except _Unreadable:
        return None
    href = foreign.web_address(field(parent, "uri"))
    return None if account.hidden or not href else (account.name, href)


def _body(labels: frozenset[str], record: Any, embeds: tuple[Embed, ...]) -> Body:
    return Body(
        cover=_cover(labels),
        text=tuple(foreign.segments(record)),
        language=foreign.language(next(iter(items(field(record, "langs"))), None)),
        embeds=embeds,
    )


def _attached(post: Any, record: Any, href: str) -> tuple[Embed, ...]:
    """What is attached to a post; where that is of a kind yet unknown, a way to see it."""
    embed = field(post, "embed")
    missed = _truthy(embed) or _truthy(field(record, "embed"))
    return _embeds(embed, href) or ((Elsewhere(href),) if missed else ())


def _embeds(embed: Any, href: str, *, within_quote: bool = False) -> tuple[Embed, ...]:
    try:
        match field(embed, "$type"):
            case "app.bsky.embed.images#view":
                return _pictures(field(embed, "images"))
            case "app.bsky.embed.gallery#view":
                return _pictures(field(embed, "items"))
            case "app.bsky.embed.external#view":
                return _external(field(embed, "external"))
            case "app.bsky.embed.video#view":
                return (_video(embed, href),)
            case "app.bsky.embed.record#view" if not within_quote:
                return (_quote(field(embed, "record")),)
            case "app.bsky.embed.recordWithMedia#view":
                media = _embeds(field(embed, "media"), href, within_quote=within_quote)
                return media if within_quote else (*media, _quote(field(embed, "record", "record")))
            case _:
                return ()
    except _Unreadable:
        return ()


def _pictures(images: Any) -> tuple[Embed, ...]:
    pictures: list[Picture] = []
    for image in items(images, _MAX_PICTURES):
        src = foreign.http_url(field(image, "thumb")) or foreign.http_url(field(image, "thumbnail"))
        if src:
            href = foreign.http_url(field(image, "fullsize")) or src
            pictures.append(_picture(src, href, field(image, "alt"), field(image, "aspectRatio")))
    return (Pictures(tuple(pictures)),) if pictures else ()


def _picture(src: str, href: str, alt: Any, ratio: Any) -> Picture:
    width, height = foreign.side(field(ratio, "width")), foreign.side(field(ratio, "height"))
    both = bool(width and height)
    return Picture(src, href, foreign.text(alt, _MAX_ALT_BYTES), width if both else 0, height if both else 0)


def _external(external: Any) -> tuple[Embed, ...]:
    href = foreign.http_url(field(external, "uri"))
    if not href:
        return ()
    thumb = foreign.http_url(field(external, "thumb"))
    title, about = field(external, "title"), field(external, "description")
    return (_card(href, foreign.host_of(href), title, about, thumb),)


def _card(href: str, host: str, title: Any, about: Any, thumb: str) -> Card:
    return Card(
        href,
        host,
        foreign.text(title, _MAX_TITLE_BYTES) or href,
        foreign.text(about, _MAX_TITLE_BYTES),
        thumb,
    )


def _video(embed: Any, href: str) -> Video:
    poster = foreign.http_url(field(embed, "thumbnail"))
    return Video(_picture(poster, href, field(embed, "alt"), field(embed, "aspectRatio")))


def _quote(record: Any) -> Embed:
    if field(record, "$type") != "app.bsky.embed.record#viewRecord":
        return _mentioned(record)
    value = field(record, "value")
    labels = foreign.labels_of(record, value, field(record, "author"))
    author = _account(field(record, "author"))
    href = foreign.web_address(field(record, "uri"))
    if not href or labels & _HIDDEN:
        return Gone("members" if author.hidden else "gone")
    at = foreign.earliest(field(value, "createdAt"), field(record, "indexedAt"))
    media = next(iter(items(field(record, "embeds"))), None)
    return Quote(author, href, at, _body(labels, value, _embeds(media, href, within_quote=True)))


def _mentioned(record: Any) -> Embed:
    """A feed, a list, a starter pack, a labeler; or a post that is no more."""
    href = foreign.web_address(field(record, "uri"))
    title = _first(
        field(record, "displayName"),
        field(record, "name"),
        field(record, "record", "name"),
        field(record, "creator", "displayName"),
        field(record, "creator", "handle"),
    )
    if not href or not isinstance(title, str):
        return Gone("gone")
    about = _first(field(record, "description"), field(record, "record", "description"))
    return _card(href, "bsky.app", title, about, "")


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
