"""The origin behind every server that is measured: `python -m tests.benchmarks.origin PORT`.

The actor asked for says how it answers: "slow100" takes 100 ms, "private" forbids to store, "failing" is a
500, "closing" an answer that never comes. `/requests` tells how often each target was asked for, and the
shortest time between two such requests.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import time
from collections import Counter

import uvloop


def body_of(size_bytes: int) -> bytes:
    """A feed of about `size_bytes`."""
    posts = []
    size = 0
    while size < size_bytes:
        n = len(posts)
        text = f"Post {n}: " + " ".join(f"word{n * 7919 * k % 1000}" for k in range(1, 21))
        post = {
            "post": {
                "uri": f"at://did:plc:z72i7hdynmk6r22z27h6tvur/app.bsky.feed.post/3l6oveex{n:05}",
                "author": {"handle": "alice.example.com", "displayName": "Alice"},
                "record": {"$type": "app.bsky.feed.post", "text": text},
                "likeCount": n * 31,
            }
        }
        posts.append(post)
        size += len(json.dumps(post)) + 1
    return json.dumps({"feed": posts}, separators=(",", ":")).encode()


class Feeds:
    """What all connections have in common."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.apart_s: dict[str, float] = {}
        self._last_at: dict[str, float] = {}
        self.bodies = {size: body_of(size) for size in (4_000, 13_700)}
        self.gzipped = {size: gzip.compress(body, 6, mtime=0) for size, body in self.bodies.items()}

    def count(self, target: str) -> None:
        now = time.monotonic()
        if target in self._last_at:
            apart_s = now - self._last_at[target]
            self.apart_s[target] = min(self.apart_s.get(target, apart_s), apart_s)
        self._last_at[target] = now
        self.requests[target] += 1


class Origin(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = feeds

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            self.answer(head)

    def answer(self, head: bytes) -> None:
        target = head.split(b" ", 2)[1].decode()
        if target == "/requests":
            told = {"requests": self.feeds.requests, "apart_s": self.feeds.apart_s}
            self.send(b"200 OK", b"content-type: application/json\r\n", json.dumps(told).encode())
            return
        self.feeds.count(target)
        size = 4_000 if "small" in target else 13_700
        zipped = b"gzip" in head.lower()
        body = self.feeds.gzipped[size] if zipped else self.feeds.bodies[size]
        fields = b"content-type: application/json; charset=utf-8\r\nvary: accept-encoding\r\n"
        fields += b"content-encoding: gzip\r\n" if zipped else b""
        fields += b"cache-control: no-store\r\n" if "private" in target else b""
        status = b"500 Internal Server Error" if "failing" in target else b"200 OK"

        def finish() -> None:
            if "closing" in target:
                self.transport.close()
            else:
                self.send(status, fields, body)

        delay_s = 0.3 if "slow300" in target else 0.1 if "slow100" in target else 0.0
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, finish)
        else:
            finish()

    def send(self, status: bytes, fields: bytes, body: bytes) -> None:
        length = b"content-length: %d\r\n\r\n" % len(body)
        self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + fields + length + body)


async def main(port: int) -> None:
    feeds = Feeds()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Origin(feeds), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
