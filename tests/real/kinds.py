"""A feed with all that the lexicons let a post carry, also what the reference AppView does not know."""

from __future__ import annotations

import struct
import zlib
from urllib.parse import urlsplit

from harness.upstream import Request, Response, json_response

ALICE = {"did": "did:plc:alice", "handle": "alice.example.com", "displayName": "Alice Example"}
BOB = {"did": "did:plc:bob", "handle": "a-rather-long-handle.of.bob.example.com", "displayName": "Bob " * 30}
AT = "2026-11-22T05:52:14Z"
LONG = "A line of text that goes on for a while, as people write when there is a lot to be said. "


def png(width: int, height: int, hue: int) -> bytes:
    """A picture that goes from one colour to another."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    row = b"\0" + bytes(byte for x in range(width) for byte in (hue, 90 + 120 * x // width, 255 - hue))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row * height)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Kinds:
    """The feed as an upstream answers it, its pictures under `base`, an address of the same upstream."""

    def __init__(self, base: str) -> None:
        self._base = base
        self.feed = [self._item(n, text, embed) for n, (text, embed) in enumerate(self._posts())]

    def answer(self, request: Request) -> Response:
        if request.path.startswith("/picture/"):
            width, height, hue = map(int, urlsplit(request.target).path.split("/")[2:])
            return Response(body=png(width, height, hue), headers={"Content-Type": "image/png"})
        return json_response({"feed": self.feed})

    def _picture(self, width: int, height: int, hue: int = 60) -> str:
        return f"{self._base}/picture/{width}/{height}/{hue % 256}"

    def _author(self, who: dict[str, str]) -> dict[str, str]:
        return who | {"avatar": self._picture(80, 80, len(who["handle"]) * 9)}

    def _item(self, number: int, text: str, embed: object) -> dict[str, object]:
        uri = f"at://{ALICE['did']}/app.bsky.feed.post/{number}"
        record = {"text": text, "createdAt": AT, "langs": ["en"]}
        return {"post": {"uri": uri, "author": self._author(ALICE), "record": record, "embed": embed}}

    def _posts(self) -> list[tuple[str, object]]:
        galleries = [(f"{count} pictures in a gallery", self.gallery(count)) for count in range(2, 11)]
        several = [(f"{count} pictures", self.images(count)) for count in range(1, 5)]
        quotes = [(f"a quote with {name}", self.quote(embed)) for name, embed in self.media().items()]
        both = [(f"{name} and a quote", self.both(embed)) for name, embed in self.media().items()]
        records = [
            (name, {"$type": "app.bsky.embed.record#view", "record": it}) for name, it in self.records()
        ]
        unknown = {"$type": "app.bsky.embed.poll#view", "question": "Which?"}
        media = list(self.media().items())
        return [*several, *galleries, *media, *quotes, *both, *records, (LONG * 3, None), ("a poll", unknown)]

    def images(self, count: int) -> dict[str, object]:
        sides = [(400, 300), (300, 400), (640, 360), (200, 600)]
        images = [
            {
                "thumb": self._picture(*sides[n % 4], 40 * n),
                "fullsize": self._picture(*sides[n % 4], 40 * n),
                "alt": f"picture {n + 1}",
                "aspectRatio": dict(zip(("width", "height"), sides[n % 4], strict=True)),
            }
            for n in range(count)
        ]
        return {"$type": "app.bsky.embed.images#view", "images": images}

    def gallery(self, count: int) -> dict[str, object]:
        images = self.images(count)["images"]
        items = [
            {"$type": "app.bsky.embed.gallery#viewImage", "thumbnail": image.pop("thumb"), **image}
            for image in images
        ]
        return {"$type": "app.bsky.embed.gallery#view", "items": items}

    def media(self) -> dict[str, dict[str, object]]:
        """What may stand alone, in a quote, and beside one."""
        card = {"uri": "https://example.com/article", "title": "An article " * 20, "description": LONG * 4}
        video = {
            "thumbnail": self._picture(640, 360, 200),
            "alt": "a film",
            "playlist": "https://example.com/v",
        }
        wide, tall = {"width": 640, "height": 360}, {"width": 360, "height": 640}
        return {
            "pictures": self.images(2),
            "a gallery": self.gallery(5),
            "a card": {"$type": "app.bsky.embed.external#view", "external": card},
            "a card with a picture": {
                "$type": "app.bsky.embed.external#view",
                "external": card | {"thumb": self._picture(600, 315, 150)},
            },
            "a video": {"$type": "app.bsky.embed.video#view", **video, "aspectRatio": wide},
            "a tall video": {"$type": "app.bsky.embed.video#view", **video, "aspectRatio": tall},
            "a moving picture": {
                "$type": "app.bsky.embed.video#view",
                **video,
                "presentation": "gif",
                "aspectRatio": wide,
            },
        }

    def _quoted(self, embed: object) -> dict[str, object]:
        uri = f"at://{BOB['did']}/app.bsky.feed.post/quoted"
        value = {"text": "what Bob has said", "createdAt": AT}
        record = {"$type": "app.bsky.embed.record#viewRecord", "uri": uri, "author": self._author(BOB)}
        return record | {"value": value, "embeds": [embed] if embed else [], "indexedAt": AT}

    def quote(self, embed: object) -> dict[str, object]:
        return {"$type": "app.bsky.embed.record#view", "record": self._quoted(embed)}

    def both(self, media: object) -> dict[str, object]:
        record = {"$type": "app.bsky.embed.record#view", "record": self._quoted(None)}
        return {"$type": "app.bsky.embed.recordWithMedia#view", "media": media, "record": record}

    def records(self) -> list[tuple[str, dict[str, object]]]:
        """Whatever may be quoted that is not a post to be seen."""
        uri, bob = "at://did:plc:bob/app.bsky", self._author(BOB)
        gone = f"{uri}.feed.post/gone"
        about = {"description": "What it is for"}
        pack = {"name": "A starter pack", **about}
        return [
            ("not found", {"$type": "app.bsky.embed.record#viewNotFound", "uri": gone, "notFound": True}),
            ("blocked", {"$type": "app.bsky.embed.record#viewBlocked", "uri": gone, "blocked": True}),
            ("detached", {"$type": "app.bsky.embed.record#viewDetached", "uri": gone, "detached": True}),
            (
                "a feed",
                {"$type": "app.bsky.feed.defs#generatorView", "uri": f"{uri}.feed.generator/x"}
                | {"displayName": "A custom feed", "creator": bob, **about},
            ),
            (
                "a list",
                {"$type": "app.bsky.graph.defs#listView", "uri": f"{uri}.graph.list/x", "name": "A list"}
                | {"creator": bob, **about},
            ),
            (
                "a starter pack",
                {"$type": "app.bsky.graph.defs#starterPackViewBasic", "uri": f"{uri}.graph.starterpack/x"}
                | {"record": pack, "creator": bob},
            ),
            (
                "a labeler",
                {"$type": "app.bsky.labeler.defs#labelerView", "uri": f"{uri}.labeler.service/self"}
                | {"creator": ALICE},
            ),
        ]
