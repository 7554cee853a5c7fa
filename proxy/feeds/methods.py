"""The public query methods and their parameters, as the lexicons define them.

Public means that the AppView answers without a login. Source: the lexicons app.bsky.actor, app.bsky.feed,
app.bsky.graph and com.atproto.identity.resolveHandle, as of @atproto/api 0.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """One query parameter of a method."""

    name: str
    kind: Literal["string", "integer", "boolean"] = "string"
    required: bool = False
    many: bool = False  # may be repeated, order kept
    default: str | None = None  # as it is written in a query; a value equal to it is left out of the key
    minimum: int | None = None
    maximum: int | None = None
    max_items: int | None = None
    format: str | None = None  # a key of syntax.FORMATS
    max_bytes: int | None = None
    max_graphemes: int | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A query method: its NSID and the parameters it knows, in the order of the lexicon."""

    nsid: str
    params: Mapping[str, Param]
    uses_language: bool = False  # the answer depends on accept-language


def _text(name: str, *, required: bool = False, default: str | None = None) -> Param:
    return Param(name=name, required=required, default=default)


def _integer(name: str, minimum: int, maximum: int, default: int) -> Param:
    return Param(name=name, kind="integer", minimum=minimum, maximum=maximum, default=str(default))


def _boolean(name: str, *, default: str | None = None) -> Param:
    return Param(name=name, kind="boolean", default=default)


def _formatted(format_: str, name: str, *, required: bool = False) -> Param:
    return Param(name=name, format=format_, required=required)


def _several(
    name: str, format_: str | None = None, *, required: bool = False, max_items: int | None = None
) -> Param:
    return Param(name=name, format=format_, many=True, required=required, max_items=max_items)


def _tags(name: str) -> Param:
    return Param(name=name, many=True, max_bytes=640, max_graphemes=64)


def _method(nsid: str, *params: Param, uses_language: bool = False) -> Method:
    return Method(nsid, MappingProxyType({param.name: param for param in params}), uses_language)


_ACTOR = _formatted("at-identifier", "actor", required=True)
_FEED = _formatted("at-uri", "feed", required=True)
_LIST = _formatted("at-uri", "list", required=True)
_URI = _formatted("at-uri", "uri", required=True)
_CID = _formatted("cid", "cid")
_CURSOR = _text("cursor")
_QUERY = _text("q", required=True)
_LIMIT_10 = _integer("limit", 1, 100, 10)
_LIMIT_25 = _integer("limit", 1, 100, 25)
_LIMIT_50 = _integer("limit", 1, 100, 50)

_TABLE = (
    _method("app.bsky.actor.getProfile", _ACTOR),
    _method("app.bsky.actor.getProfiles", _several("actors", "at-identifier", required=True, max_items=25)),
    _method("app.bsky.actor.getSuggestions", _LIMIT_50, _CURSOR, uses_language=True),
    _method("app.bsky.actor.searchActors", _text("term"), _text("q"), _LIMIT_25, _CURSOR),
    _method("app.bsky.actor.searchActorsTypeahead", _text("term"), _text("q"), _LIMIT_10),
    _method("app.bsky.feed.getActorFeeds", _ACTOR, _LIMIT_50, _CURSOR),
    _method(
        "app.bsky.feed.getAuthorFeed",
        _ACTOR,
        _LIMIT_50,
        _CURSOR,
        _text("filter", default="posts_with_replies"),
        _boolean("includePins", default="false"),
    ),
    _method("app.bsky.feed.getFeed", _FEED, _LIMIT_50, _CURSOR, uses_language=True),
    _method("app.bsky.feed.getFeedGenerator", _FEED),
    _method("app.bsky.feed.getFeedGenerators", _several("feeds", "at-uri", required=True)),
    _method("app.bsky.feed.getLikes", _URI, _CID, _LIMIT_50, _CURSOR),
    _method("app.bsky.feed.getListFeed", _LIST, _LIMIT_50, _CURSOR),
    _method(
        "app.bsky.feed.getPostThread",
        _URI,
        _integer("depth", 0, 1000, 6),
        _integer("parentHeight", 0, 1000, 80),
    ),
    _method("app.bsky.feed.getPosts", _several("uris", "at-uri", required=True, max_items=25)),
    _method("app.bsky.feed.getQuotes", _URI, _CID, _LIMIT_50, _CURSOR),
    _method("app.bsky.feed.getRepostedBy", _URI, _CID, _LIMIT_50, _CURSOR),
    _method("app.bsky.feed.getSuggestedFeeds", _LIMIT_50, _CURSOR),
    _method(
        "app.bsky.feed.searchPosts",
        _QUERY,
        _text("sort", default="latest"),
        _text("since"),
        _text("until"),
        _formatted("at-identifier", "mentions"),
        _formatted("at-identifier", "author"),
        _formatted("language", "lang"),
        _text("domain"),
        _formatted("uri", "url"),
        _tags("tag"),
        _LIMIT_25,
        _CURSOR,
    ),
    _method(
        "app.bsky.feed.searchPostsV2",
        _CURSOR,
        _LIMIT_25,
        _text("query"),
        _text("sort"),
        _several("authors", "at-identifier"),
        _several("mentions", "at-identifier"),
        _several("domains"),
        _several("urls", "uri"),
        _several("embeddedAtUris", "at-uri"),
        _tags("hashtags"),
        _several("excludeAuthors", "at-identifier"),
        _several("excludeMentions", "at-identifier"),
        _several("excludeDomains"),
        _several("excludeUrls", "uri"),
        _several("excludeEmbeddedAtUris", "at-uri"),
        _tags("excludeHashtags"),
        _text("since"),
        _text("until"),
        _boolean("allTime"),
        _several("languages", "language"),
        _several("excludeLanguages", "language"),
        _boolean("hasMedia"),
        _boolean("hasVideo"),
        _formatted("at-uri", "replyParentUri"),
        _formatted("at-uri", "threadRootUri"),
        _boolean("excludeReplies"),
        _boolean("repliesOnly"),
        _boolean("following"),
        _text("queryLanguage"),
    ),
    _method("app.bsky.graph.getActorStarterPacks", _ACTOR, _LIMIT_50, _CURSOR),
    _method("app.bsky.graph.getFollowers", _ACTOR, _LIMIT_50, _CURSOR, _text("sort")),
    _method("app.bsky.graph.getFollows", _ACTOR, _LIMIT_50, _CURSOR, _text("sort")),
    _method("app.bsky.graph.getList", _LIST, _LIMIT_50, _CURSOR),
    _method("app.bsky.graph.getLists", _ACTOR, _LIMIT_50, _CURSOR, _several("purposes")),
    _method("app.bsky.graph.getRelationships", _ACTOR, _several("others", "at-identifier", max_items=30)),
    _method("app.bsky.graph.getStarterPack", _formatted("at-uri", "starterPack", required=True)),
    _method("app.bsky.graph.getStarterPacks", _several("uris", "at-uri", required=True, max_items=25)),
    _method("app.bsky.graph.searchStarterPacks", _QUERY, _LIMIT_25, _CURSOR),
    _method("app.bsky.graph.searchStarterPacksV2", _QUERY, _LIMIT_25, _CURSOR),
    _method("com.atproto.identity.resolveHandle", _formatted("handle", "handle", required=True)),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.nsid: method for method in _TABLE})
