"""A stranger's web, as those meet it who publish posts about its pages."""

from __future__ import annotations

import ssl
from dataclasses import replace

from harness.pictures import bomb, opened, picture
from harness.stranger import STRANGERS, Names
from harness.upstream import Response
from integration.publishing import delivery_of, key_of, post_of
from proxy.clock import SystemClock
from proxy.syndication.attempt import Published
from proxy.syndication.enriching import Enricher
from proxy.syndication.foreign import ForeignReader
from proxy.syndication.outside import Outside
from proxy.tenants import Site

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
PAGE = """<title>Its title</title><meta property="og:title" content="The page's title">
<meta property="og:description" content="What it is about"><meta property="og:image" content="/cat.jpg">"""


class ClockOfTest(SystemClock):
    """The host's; on the wall it is `ahead_s` later."""

    ahead_s = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead_s


class Web:
    """A stranger's web: what its server has at each path; where its names lead."""

    def __init__(self, server, inside) -> None:
        self.server = server
        self.inside = inside
        self.clock = ClockOfTest()
        self.names = Names({"blog.example": [["127.0.0.1"]]})
        self.at = {"/a": html(PAGE), "/cat.jpg": jpeg(picture(size=(400, 200)))}
        server.answer = lambda call: self.at.get(call.path, Response(status=404, body=b"no"))

    def url(self, path="/a", host="blog.example") -> str:
        return f"http://{host}:{self.server.port}{path}"

    def enricher(self, allowed=(STRANGERS,)) -> Enricher:
        outside = Outside(
            self.clock, user_agent="tests", allowed=allowed, resolve=self.names, ssl_context=NO_TLS
        )
        return Enricher(outside, ForeignReader(self.clock), self.clock)

    def put_hostile(self, path, what) -> str:
        """Put what HOSTILE names at `path`; what is said of it."""
        response, reason = HOSTILE[what]
        headers = {name: value.format(inside=self.inside.port) for name, value in response.headers.items()}
        self.at[path] = replace(response, headers=headers)
        return reason

    def fetched(self, path) -> int:
        return sum(call.path == path for call in self.server.requests)

    def post(self, number=1, path="/a", **fields):
        return post_of(number, url=self.url(path), **fields)


def html(text, **headers):
    return Response(body=text.encode(), headers={"Content-Type": "text/html; charset=utf-8", **headers})


def moved(location):
    return Response(status=302, body=b"", headers={"Location": location})


def jpeg(content, kind="image/jpeg"):
    return Response(body=content, headers={"Content-Type": kind})


async def published(host, post, **changes):
    """One attempt at `post`, which succeeds; what became of it."""
    delivery, job = delivery_of(post)
    outcome, _ = await host.attempt(replace(delivery, **changes), post, job)
    assert isinstance(outcome, Published)
    return outcome


def record_of(account, post):
    return account.records[key_of(post)][0]


def shown(account, blob):
    """The picture that a record names, as it lies on the PDS."""
    content = account.blobs[blob["ref"]["$link"]]
    assert (blob["mimeType"], blob["size"]) == ("image/jpeg", len(content))
    assert len(content) <= 1_000_000
    return opened(content)


def site(*, hosts=(), name="blog"):
    return Site(name=name, token_env="T", accounts=("main",), hosts=hosts)


# What pages and pictures do to whoever asks for them: what is there, and what is said of it.
HOSTILE = {
    "404": (Response(status=404, body=b"no"), "answered 404"),
    "20 MB": (jpeg(bytes(20_000_000)), "sends more than 15 MiB"),
    "a PDF": (jpeg(b"%PDF-1.4", "application/pdf"), "sends application/pdf"),
    "corrupt": (jpeg(picture(size=(400, 200))[:700]), "is damaged"),
    "no picture": (jpeg(b"<html>"), "is no JPEG"),
    "a bomb": (jpeg(bomb(), "image/png"), "has too many pixels"),
    "compressed": (Response(headers={"Content-Type": "", "Content-Encoding": "br"}), "encoding"),
    "to the inside": (moved("http://127.0.0.2:{inside}/"), "no public address"),
    "to a loop": (moved("?"), "redirects too often"),
    "to a port": (moved("http://1.1.1.1:22/"), "no public address"),
}
