"""The records of a post within their lexicon, and where a record leads its readers. Pure.

What a post has too much of is left out and recorded: a wrong tag never costs the post. The limits are those
of app.bsky.feed.post.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import regex

from proxy.syndication.entities import Kind, hashtag
from proxy.syndication.fitting import count_graphemes
from proxy.syndication.intent import Intent
from proxy.syndication.post import Post
from proxy.syndication.richtext import RichText, Wording, compose, compose_thread
from proxy.syndication.rkey import POST_COLLECTION

MAX_LANGS: Final = 3
MAX_TAGS: Final = 8
MAX_LABELS: Final = 10
_MAX_TAG_GRAPHEMES: Final = 64
_MAX_TAG_BYTES: Final = 640
_MAX_LABEL_BYTES: Final = 128
# In all records of a post: each takes about 150 bytes, and a PDS reads requests of 150 KiB.
_MAX_FACETS: Final = 300

# A well-formed language tag (https://www.rfc-editor.org/rfc/rfc5646#section-2.1), without grandfathered ones.
_LANGUAGE: Final = regex.compile(
    r"(?:[a-z]{2,3}(?:-[a-z]{3}){0,3}|[a-z]{4,8})(?:-[a-z]{4})?(?:-(?:[a-z]{2}|[0-9]{3}))?"
    r"(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*(?:-[a-wyz0-9](?:-[a-z0-9]{2,8})+)*(?:-x(?:-[a-z0-9]{1,8})+)?"
    r"|x(?:-[a-z0-9]{1,8})+",
    regex.ASCII | regex.IGNORECASE,
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# Campaign parameters, which cross-posting tools add; they lead to the same page.
_CAMPAIGN: Final = "utm_"


@dataclass(frozen=True, slots=True)
class _Kept:
    """What of a list a record has room for, and how much was left out."""

    values: list[str]
    left_out: int

    def said(self, of: str) -> Iterator[str]:
        if self.left_out:
            yield f"{self.left_out} of the {of} {'was' if self.left_out == 1 else 'were'} left out"


def texts_of(post: Post, template: str) -> tuple[RichText, ...]:
    """What `post` says, in as many records as it takes."""
    wording = Wording(url=post.url, title=post.title, excerpt=post.excerpt, text=post.text, tags=post.tags)
    return compose_thread(wording, template) if post.thread else (compose(wording, template),)


def freeze(
    post: Post,
    texts: Sequence[RichText],
    *,
    dids: Mapping[str, str],
    langs: Sequence[str],
    created_at: float,
) -> Intent:
    """The records of `post` with `texts`, one each. `dids` are those of handles in them that lead somewhere.

    `langs` are the site's, used where the post has none. `created_at` (seconds since 1970) is the instant of
    the first attempt, not of the publication: readers are shown a post by the earlier of it and of when it
    arrived, so one that has waited would sink. The parts of a thread are a millisecond apart, in their order.
    """
    written, tags, labels = _langs(post.langs or langs), _tags(post.tags, texts[0]), _labels(post.labels)
    shared: dict[str, Any] = {"$type": POST_COLLECTION}
    if written.values:
        shared["langs"] = written.values
    if labels.values:
        values = [{"val": label} for label in labels.values]
        shared["labels"] = {"$type": "com.atproto.label.defs#selfLabels", "values": values}
    records, left = [], _MAX_FACETS
    for part, rich in enumerate(texts):
        facets = rich.facets(dids)
        record = {**shared, "text": rich.text, "createdAt": _instant(created_at + part / 1000)}
        if facets[:left]:
            record["facets"] = facets[:left]
        left = max(left - len(facets), 0)
        records.append(record)
    if tags.values:
        records[0]["tags"] = tags.values
    degraded = [*_cuts(texts), *_unresolved(texts, dids)]
    degraded += [*tags.said("tags"), *written.said("languages"), *labels.said("labels")]
    return Intent(tuple(records), post.url, tuple(degraded))


def links_to(record: Mapping[str, Any], url: str) -> bool:
    """Whether `record` is a post that leads its readers to `url`. A reply that mentions it is none."""
    if record.get("reply"):
        return False
    wanted = _page(url)
    return any(_page(uri) == wanted for uri in (*uris_in(record), *_words(record)))


def is_about(record: Mapping[str, Any], url: str) -> bool:
    """Whether `url` is what `record` is there for: where its card leads, without one its last link.

    A roundup leads to many posts and is about none of them.
    """
    if record.get("reply"):
        return False
    uris = [*_cards(record)][:1] or [*_links(record)][-1:] or [*_words(record)][-1:]
    return any(_page(uri) == _page(url) for uri in uris)


def uris_in(record: Mapping[str, Any]) -> Iterator[str]:
    """Where the links and the card of a record lead. Whoever wrote it, no shape of it is an error."""
    yield from _links(record)
    yield from _cards(record)


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _cuts(texts: Sequence[RichText]) -> Iterator[str]:
    for part in texts[0].shortened:
        if part not in ("excerpt", "tags"):  # which are there to fill what is left
            yield f"the {part} was too long and was cut"


def _unresolved(texts: Sequence[RichText], dids: Mapping[str, str]) -> Iterator[str]:
    handles = dict.fromkeys(handle for rich in texts for handle in rich.handles if handle not in dids)
    if handles:
        several = f" and {len(handles) - 1} more" if len(handles) > 1 else ""
        yield f"@{next(iter(handles))}{several} could not be resolved: plain text"


def _tags(tags: Sequence[str], rich: RichText) -> _Kept:
    """The tags beside the text. What stands in the text as a tag is one already."""
    there = {entity.value.casefold() for entity in rich.entities if entity.kind is Kind.TAG}
    bare = dict.fromkeys(tag.strip().removeprefix("#").strip() for tag in tags)
    wanted = [tag for tag in bare if tag and not {tag.casefold(), hashtag(tag).casefold()} & there]
    fitting = [
        tag
        for tag in wanted
        if count_graphemes(tag) <= _MAX_TAG_GRAPHEMES and len(tag.encode()) <= _MAX_TAG_BYTES
    ]
    return _Kept(fitting[:MAX_TAGS], len(wanted) - len(fitting[:MAX_TAGS]))


def _langs(langs: Sequence[str]) -> _Kept:
    wanted = dict.fromkeys(langs)
    kept = [lang for lang in wanted if _LANGUAGE.fullmatch(lang)][:MAX_LANGS]
    return _Kept(kept, len(wanted) - len(kept))


def _labels(labels: Sequence[str]) -> _Kept:
    wanted = dict.fromkeys(labels)
    kept = [label for label in wanted if len(label.encode()) <= _MAX_LABEL_BYTES][:MAX_LABELS]
    return _Kept(kept, len(wanted) - len(kept))


def _page(url: str) -> tuple[Any, ...] | None:
    """What a URL leads to, without what makes no difference to it; None if it is no web address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    port = None if port == _DEFAULT_PORTS[scheme] else port
    query = [
        pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not pair[0].startswith(_CAMPAIGN)
    ]
    # A site that moved to https kept its posts.
    # Posts of one page are told apart by the fragment, all those of an app that routes by it.
    return parts.hostname.rstrip("."), port, unquote(parts.path).rstrip("/"), urlencode(query), parts.fragment


def _links(record: Mapping[str, Any]) -> Iterator[str]:
    """Where the links of a record's text lead, in their order there."""
    facets = [_mapping(facet) for facet in _list(record.get("facets"))]
    for facet in sorted(facets, key=_start):
        for feature in _list(facet.get("features")):
            uri = _mapping(feature).get("uri")
            if isinstance(uri, str):
                yield uri


def _start(facet: Mapping[str, Any]) -> int:
    start = _mapping(facet.get("index")).get("byteStart")
    return start if isinstance(start, int) else 0


def _cards(record: Mapping[str, Any]) -> Iterator[str]:
    embed = _mapping(record.get("embed"))
    for holder in (embed, _mapping(embed.get("media"))):
        uri = _mapping(holder.get("external")).get("uri")
        if isinstance(uri, str):
            yield uri


def _words(record: Mapping[str, Any]) -> Iterator[str]:
    """The words of a record's text that are links; some tools set no facet."""
    text = record.get("text")
    for word in text.split() if isinstance(text, str) else ():
        if "://" in word:
            yield word.strip("()[]<>.,;!\"'")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
