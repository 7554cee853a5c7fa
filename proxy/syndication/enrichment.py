"""What a post is published with beside its words: its card, or its pictures. Pure.

Found out once for a job, and kept with it; the pictures' bytes are not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.syndication.card import MAX_DESCRIPTION_CHARS, MAX_TITLE_CHARS, Card, one_line
from proxy.syndication.post import Image, Post

MAX_PICTURES: Final = 4
MAX_STORED_BYTES: Final = 4096

_FORMAT: Final = 1
_MAX_DEGRADED: Final = 8
_MAX_DEGRADED_CHARS: Final = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrichment:
    """Card and pictures of a post. `picture` is the card's (a URL, empty: none).

    `shown` are places in the post's `images` of those that are shown instead of the card. `degraded` says
    what the post has to go without, and why.
    """

    title: str
    description: str = ""
    picture: str = ""
    shown: tuple[int, ...] = ()
    degraded: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The enrichment as it is kept: at most MAX_STORED_BYTES."""
        document: dict[str, Any] = {
            "format": _FORMAT,
            "title": self.title,
            "description": self.description,
            "picture": self.picture,
            "shown": self.shown,
            "degraded": self.degraded,
        }
        # The least needed goes first; the title alone always fits.
        for name in ("description", "picture", "degraded"):
            if len(_written(document).encode()) > MAX_STORED_BYTES:
                document[name] = () if name == "degraded" else ""
        return _written(document)

    @classmethod
    def from_json(cls, text: str) -> Enrichment | None:
        """What was kept; None if it is damaged or of another format, and has to be found out again."""
        try:
            document = json.loads(text)
            if document["format"] != _FORMAT:
                return None
            return cls(
                title=str(document["title"]),
                description=str(document["description"]),
                picture=str(document["picture"]),
                shown=tuple(map(int, document["shown"])),
                degraded=tuple(map(str, document["degraded"])),
            )
        except (ValueError, KeyError, TypeError):
            return None


def _written(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def enrichment_of(
    post: Post, card: Card | None = None, *, shown: tuple[int, ...] = (), degraded: tuple[str, ...] = ()
) -> Enrichment:
    """What `post` is published with if its page says `card`: what the CMS sent comes first."""
    card = card or Card()
    titles = (post.title or "", card.title, urlsplit(post.url).hostname or post.url)
    kept = [line[:_MAX_DEGRADED_CHARS] for line in degraded[:_MAX_DEGRADED]]
    return Enrichment(
        title=one_line(titles, MAX_TITLE_CHARS),
        description=one_line((post.excerpt or "", card.description), MAX_DESCRIPTION_CHARS),
        picture=card.picture,
        shown=shown,
        degraded=tuple(kept),
    )


def pictures_of(post: Post, enrichment: Enrichment) -> tuple[Image, ...]:
    """The pictures of `post` that are shown."""
    return tuple(post.images[place] for place in enrichment.shown if 0 <= place < len(post.images))
