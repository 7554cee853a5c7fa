"""Texts of every kind: the PDS refuses none, and their facets are those of the official clients."""

from __future__ import annotations

import json
import os
import random
from collections import Counter

from real.harness import HERE, run_script

from proxy.syndication.entities import Kind, detect
from proxy.syndication.post import parse_post
from proxy.syndication.record import freeze, texts_of
from proxy.syntax import is_handle, is_uri

# 10,000 take a few minutes.
POSTS = int(os.environ.get("RICHTEXT_POSTS", "500"))
NOW = 1_795_338_000.0
URLS = [
    "https://blog.example/a",
    "https://blog.example/A_(b)",
    "https://example.com/字?q=ü&r=(1)#x",
    f"https://blog.example/{'x' * 320}",
]
TEMPLATES = [
    "{title}\n\n{excerpt}\n\n{url}",
    "New: {title} ({url}) {tags}",
    "{tags}\n{title}{url}",
    "{excerpt} {url}",
]
# What the texts are made of. One word of a kind is as likely as any other of it, and each kind as the others.
PIECES = json.loads((HERE / "texts.json").read_text())
SEPARATORS = [" "] * 12 + ["", "", "\n", "\n\n", " (", ") ", "(", ")", ", ", ". ", "! ", "“", "” ", "   "]


def text_of(draw, pieces):
    """A text of so many pieces, now and then with characters from anywhere."""
    parts = []
    for _ in range(pieces):
        kind = draw.choice(list(PIECES))
        parts += [draw.choice(PIECES[kind]), draw.choice(SEPARATORS)]
        if draw.random() < 0.02:
            parts.append(chr(draw.choice([draw.randrange(0x20, 0xD800), draw.randrange(0xE000, 0x20000)])))
    return "".join(parts)


def record_of(draw, number):
    """The records of a generated post, and its link."""
    document = {"id": str(number), "url": draw.choice(URLS), "published_at": "2026-11-22T09:00:00Z"}
    document["title"] = text_of(draw, draw.randint(1, 25))[:900] or "T"
    document["excerpt"] = text_of(draw, draw.randint(0, 60))
    document["tags"] = [text_of(draw, 2)[:50] or "t" for _ in range(draw.randint(0, 4))]
    if draw.random() < 0.6:
        document |= {"text": text_of(draw, draw.randint(1, 120)), "thread": draw.random() < 0.4}
    document["title"] = document["title"].strip() or "T"
    post, _ = parse_post(document, now=NOW)
    texts = texts_of(post, draw.choice(TEMPLATES))
    dids = {handle: f"did:web:{handle.lower()}" for rich in texts for handle in rich.handles}
    intent = freeze(post, texts, dids=dids, langs=(), created_at=NOW)
    frozen = intent.at("did:plc:alice", "3n2vatw364lwz")
    return [(json.loads(record.json_bytes), post.url) for record in frozen]


def ours_of(record):
    """Our facets, in the form of the script."""
    facets = []
    for facet in record.get("facets", ()):
        index, (feature,) = facet["index"], facet["features"]
        kind = feature["$type"].partition("#")[2]
        value = feature.get("uri") or feature.get("tag") or feature["did"]
        facets.append((index["byteStart"], index["byteEnd"], kind, value.removeprefix("did:web:")))
    return facets


class Differences:
    """Sorts facets that only we or only they have under the reason; what has none is `unexplained`."""

    def __init__(self) -> None:
        self.equal = 0
        self.reasons: Counter[str] = Counter()
        self.unexplained: list[object] = []

    def compare(self, record, url, theirs) -> None:
        ours = ours_of(record)
        theirs = [(s, e, kind, v.lower() if kind == "mention" else v) for s, e, kind, v in theirs]
        self.equal += len(set(ours) & set(theirs))
        text = record["text"].encode()
        for facet in sorted({*ours} ^ {*theirs}):
            mine = facet in ours
            others = [f for f in (theirs if mine else ours) if f[0] < facet[1] and facet[0] < f[1]]
            reason = (
                self._ours(facet, url, text, others) if mine else self._theirs(facet, url, text, theirs, ours)
            )
            if reason:
                self.reasons[reason] += 1
            else:
                self.unexplained.append((record["text"], "ours" if mine else "theirs", facet, others))

    def _ours(self, facet, url, text, theirs):
        start, end, kind, value = facet
        shown = text[start:end].decode()
        if value == url:
            return "the post's own link is one wherever it stands, as it is"
        if shown.endswith("…") and value.partition("://")[2].startswith(shown.partition("://")[2][:-1]):
            return "a link shown in part leads to the whole"
        if kind == "tag" and shown == f"#{value}" and text[start - 1 : start] in (b"(", b"\n", b" "):
            return None if text[start - 1 : start] != b"(" else "a tag of {tags} is one within brackets too"
        for s, e, k, v in theirs:
            if s == start and k == kind == "link":
                if not set(text[end:e].decode()) - set(".,;:!?)"):
                    return "a link ends before all that ends a sentence, and brackets it did not open"
                if v == shown and value == f"https://{v}":
                    return "a name that begins with http gets its scheme"
        return None

    def _theirs(self, facet, url, text, theirs, ours):
        start, end, kind, value = facet
        over = [f for f in ours if f[0] < end and start < f[1]]
        if kind == "mention" and not is_handle(value):
            return "a mention needs a handle that can exist"
        if kind == "link" and not is_uri(value):
            return "a PDS refuses a link that is no URI"
        if any(f[0] < start < f[1] for f in theirs):
            return "of two that overlap the first is kept"
        if kind == "link" and not over and not detect(text[start:end].decode()):
            return "a link needs a host"
        if over and self._ours(over[0], url, text, [facet]):
            return "(the other side of one of ours)"
        return None


def test_none_is_refused_and_facets_are_those_of_the_official_clients():
    draw = random.Random(5)
    records = [pair for number in range(POSTS) for pair in record_of(draw, number)]
    answers = run_script("richtext.mjs", facts=[record for record, _ in records])
    differences = Differences()
    for (record, url), answer in zip(records, answers, strict=True):
        assert answer["refused"] is None, record
        assert answer["graphemes"] <= 300, record
        differences.compare(record, url, answer["facets"])
    print(f"{len(records)} records of {POSTS} posts, {differences.equal} equal facets", differences.reasons)
    assert differences.unexplained == []
    assert differences.equal > 3 * POSTS
    assert {Kind.LINK, Kind.MENTION, Kind.TAG} <= {e.kind for r, _ in records for e in detect(r["text"])}
