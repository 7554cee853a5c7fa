"""Feeds as HTML: a document for iframes, and a fragment for the templates of a CMS."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from proxy.widget.foreign import WEB, component, web_address
from proxy.widget.script import HERE, Script
from proxy.widget.view import Feed, feed_view

# The heading is for those who hear the page.
_FRAME_STYLE: Final = (
    "body{margin:0}bluesky-feed{margin-inline:auto}"
    "h1{position:absolute;clip-path:inset(50%);inline-size:1px;block-size:1px;overflow:hidden;white-space:nowrap}"
)
_AUTHOR_FEED: Final = "app.bsky.feed.getAuthorFeed"
_DEFAULT_FILTER: Final = "posts_and_author_threads"
_DEFAULT_LIMIT: Final = 10
_MAX_LIMIT: Final = 100
# Few sizes only, so that widgets and pages of all lengths share an answer.
_SMALL: Final = 30


@dataclass(frozen=True, slots=True)
class Wish:
    """What a page asks for: whose feed, how much of it, and how it is to look. Empty is the default."""

    actor: str
    feed: str = ""
    limit: int = _DEFAULT_LIMIT
    filter: str = ""
    theme: str = ""
    language: str = ""

    @property
    def question(self) -> tuple[str, Mapping[str, str]]:
        """The method to ask and its parameters: the ones that the script would ask."""
        size = str(_SMALL if self.limit <= _SMALL else _MAX_LIMIT)
        if "/app.bsky.graph.list/" in self.feed:
            return "app.bsky.feed.getListFeed", {"list": self.feed, "limit": size}
        if self.feed:
            return "app.bsky.feed.getFeed", {"feed": self.feed, "limit": size}
        return _AUTHOR_FEED, {
            "actor": self.actor,
            "limit": size,
            "filter": self.filter or _DEFAULT_FILTER,
            "includePins": "true",
        }

    @property
    def web(self) -> str:
        """Where the feed is to be seen on Bluesky."""
        return web_address(self.feed) or f"{WEB}/profile/{component(self.actor)}"

    @property
    def attributes(self) -> list[tuple[str, str]]:
        """The attributes of the element that goes on with the feed in the browser."""
        given = {
            "feed" if self.feed else "actor": self.feed or self.actor,
            "limit": str(self.limit),
            "filter": self.filter,
            "theme": self.theme,
            "lang": self.language,
        }
        return [(name, value) for name, value in given.items() if value]


def wish_of(actor: str, query: Mapping[str, str], languages: Mapping[str, object]) -> Wish:
    """The wish that a request spells out; what it says wrongly about looks is ignored."""
    limit = query.get("limit", "")
    number = int(limit) if limit.isascii() and limit.isdigit() and len(limit) <= 4 else 0
    theme, language = query.get("theme", ""), query.get("lang", "")[:2].lower()
    return Wish(
        actor=actor.strip().removeprefix("@"),
        feed=query.get("feed", ""),
        limit=min(number, _MAX_LIMIT) or _DEFAULT_LIMIT,
        filter=query.get("filter", ""),
        theme=theme if theme in ("light", "dark") else "",
        language=language if language in languages else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the templates show: a feed, or none (`feed` and `key` are None)."""

    wish: Wish
    feed: Feed | None
    label: str
    format: str
    key: str | None
    updated_at: datetime | None
    stale: bool
    still: bool  # the script must not ask for what is new

    @property
    def attributes(self) -> list[tuple[str, str]]:
        """Those of the element."""
        return self.wish.attributes

    @property
    def web(self) -> str:
        """Where the feed is to be seen on Bluesky."""
        return self.wish.web

    @property
    def language(self) -> str:
        """The language of the words."""
        return self.wish.language or "en"

    @property
    def theme(self) -> str:
        """light, dark, or empty: as the reader has it."""
        return self.wish.theme


class Pages:
    """Renders pages with the style and the words of `script`."""

    def __init__(self, script: Script) -> None:
        self._script = script
        # Read now and never again: an upgrade changes the files of a process that goes on.
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
        )
        for name in self._templates.list_templates():
            self._templates.get_template(name)

    @property
    def languages(self) -> Mapping[str, object]:
        """The languages there are words for, by their two letters."""
        return self._script.words

    @property
    def style_hashes(self) -> str:
        """The inline style sheets of a document, as a Content-Security-Policy names them."""
        return f"{_csp_hash(_FRAME_STYLE)} {_csp_hash(self._script.style)}"

    def page(
        self,
        wish: Wish,
        document: Any,
        *,
        key: str | None,
        updated_at: datetime | None,
        stale: bool,
        still: bool = False,
    ) -> Page:
        """The page for an answer of the AppView; without one (None) a friendly line and a link."""
        feed = None
        if document is not None:
            feed = feed_view(document, actor=None if wish.feed else wish.actor, limit=wish.limit)
        return Page(
            wish=wish,
            feed=feed,
            label=self._label(wish, feed),
            format=self._script.format,
            key=key,
            updated_at=updated_at,
            stale=stale,
            still=still,
        )

    def document(self, page: Page) -> str:
        """A whole document."""
        return self._render("embed.html", page, style=self._script.style, frame_style=_FRAME_STYLE)

    def fragment(self, page: Page, style_href: str) -> str:
        """The element alone, with a link to its style sheet."""
        return self._render("fragment.html", page, style_href=style_href)

    def home(self, **variables: object) -> str:
        """The page for newcomers."""
        return self._templates.get_template("home.html").render(**variables)

    def _render(self, template: str, page: Page, **variables: object) -> str:
        words = self._script.words[page.language]
        return self._templates.get_template(template).render(page=page, words=words, **variables)

    def _label(self, wish: Wish, feed: Feed | None) -> str:
        words = self._script.words[wish.language or "en"]
        if wish.feed:
            return words["feed"]
        owner = feed.owner if feed else None
        if owner is None or owner.hidden:
            return words["posts"].replace("{}", wish.actor) if feed is None else words["feed"]
        return words["posts"].replace("{}", owner.name)


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
