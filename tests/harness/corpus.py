"""Requests as clients send them, as they should not, and as nobody does."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from harness.proxy import feed

FEED = feed("alice.test", limit=30)
BROWSER = (
    "Host: feeds.example",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0",
    'sec-ch-ua: "Chromium";v="142", "Not_A Brand";v="99"',
    "Accept: */*",
    "Origin: https://blog.example",
    "Referer: https://blog.example/",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: en-US,en;q=0.9",
)


def head(*fields, target=FEED, method="GET", version="HTTP/1.1"):
    return "\r\n".join((f"{method} {target} {version}", *fields, "", "")).encode("latin-1")


def plain(target=FEED):
    """The least that a request may be."""
    return head("Host: p", target=target)


NOT_PLAIN = {
    "a body": head(*BROWSER, "Content-Length: 4") + b"body",
    "an empty body": head(*BROWSER, "content-length: 0"),
    "a body that is a request": head(*BROWSER, f"Content-Length: {len(head(*BROWSER))}") + head(*BROWSER),
    "a length, and no body yet": head(*BROWSER, "Content-Length: 4"),
    "chunks, and none yet": head(*BROWSER, "Transfer-Encoding: chunked"),
    "chunks": head(*BROWSER, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "obscured chunks": head(*BROWSER, "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked")
    + b"0\r\n\r\n",
    "length and chunks": head(*BROWSER, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "leave to send": head(*BROWSER, "Expect: 100-continue"),
    "an upgrade": head(*BROWSER, "Connection: Upgrade", "Upgrade: websocket"),
    "HTTP/2 in clear text": head(*BROWSER, "Upgrade: h2c"),
    "the last request": head(*BROWSER, "Connection: close"),
    "keep-alive": head(*BROWSER, "Connection: keep-alive"),
    "the last request, said as of old": head(*BROWSER, "Proxy-Connection: close"),
    "two hosts": head(*BROWSER, "Host: other.test"),
    "no host": head("Accept: */*"),
    "no field": head(),
    "a folded line": head(*BROWSER, "X-Folded: a\r\n b"),
    "a line folded with a tab": head(*BROWSER, "X-Folded: a\r\n\tb"),
    "a folded length": head(*BROWSER, "X-Folded: a\r\n Content-Length: 5"),
    "a folded line first": head(" x: y", *BROWSER),
    "a bare LF": head(*BROWSER).replace(b"\r\n", b"\n", 1),
    "a bare LF inside": head("X: y\nContent-Length: 5", *BROWSER),
    "a bare LF after a field": head(*BROWSER).replace(b"*/*\r\n", b"*/*\n"),
    "a bare LF after the last field": head(*BROWSER)[:-4] + b"\n\r\n",
    "a bare LF at the end": head(*BROWSER)[:-2] + b"\n",
    "two bare LFs at the end": head(*BROWSER)[:-4] + b"\n\n",
    "only LFs": head(*BROWSER).replace(b"\r\n", b"\n"),
    "a bare CR": head("X: y\rContent-Length: 5", *BROWSER),
    "a NUL": head("X: \0", *BROWSER),
    "Latin-1": head("X: \xe9", *BROWSER),
    "a blank before the colon": head("Content-Length : 5", *BROWSER),
    "a blank in a name": head("Con tent-Length: 5", *BROWSER),
    "no name": head(": value", *BROWSER),
    "no colon": head("Host", *BROWSER),
    "HTTP/1.0": head(*BROWSER, version="HTTP/1.0"),
    "HTTP/1.2": head(*BROWSER, version="HTTP/1.2"),
    "HTTP/2.0": head(*BROWSER, version="HTTP/2.0"),
    "two blanks": head(*BROWSER, target=f"{FEED} "),
    "a tab": head(*BROWSER, target=f"{FEED}\t"),
    "an absolute target": head(*BROWSER, target=f"http://feeds.example{FEED}"),
    "a fragment": head(*BROWSER, target=f"{FEED}#x"),
    "a relative path": head(*BROWSER, target=f"/xrpc/../{FEED}"),
    "an escaped path": head(*BROWSER, target=FEED.replace("bsky", "%62sky")),
    "lower case": head(*BROWSER, method="get"),
    "HEAD": head(*BROWSER, method="HEAD"),
    "OPTIONS": head(*BROWSER, method="OPTIONS"),
    "POST": head(*BROWSER, method="POST"),
    "a method of nobody's": head(*BROWSER, method="GETT"),
    "labelers": head(*BROWSER, "atproto-accept-labelers: did:plc:ar7c4by46qjdydhdevvrndac;redact"),
    "no labelers": head(*BROWSER, "Atproto-Accept-Labelers:"),
    "a condition": head(*BROWSER, 'If-None-Match: "x"'),
    "any condition": head(*BROWSER, "If-None-Match: *"),
    "a method with languages": head(
        *BROWSER, target="/xrpc/app.bsky.feed.getFeed?feed=at://a.test/app.bsky.feed.generator/x"
    ),
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "pipelined": head(*BROWSER) + head("Host: feeds.example"),
    "pipelined behind a bad one": head(*BROWSER) + b"GARBAGE\r\n\r\n",
    "line ends first": b"\r\n" + head(*BROWSER),
    "line ends last": head(*BROWSER) + b"\r\n",
    "a long head": head(*BROWSER, f"X: {'x' * 5000}"),
    "a head too long": head(*BROWSER, f"X: {'x' * 20_000}"),
}

PIECES = [
    *(field.encode("latin-1") + b"\r\n" for field in BROWSER),
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b"\xff", b"%00", b"#", b"?", b"abc", b"0\r\n\r\n",
    b"GET ", b"HEAD ", FEED.encode(), b" HTTP/1.1\r\n", b" HTTP/1.0\r\n",
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n",
    b"connection: keep-alive\r\n", b"If-None-Match: *\r\n", b"cookie: a=b\r\n",
]  # fmt: skip


@st.composite
def mangled(draw):
    """A plain request with a few things put in, taken out or doubled, as so many reads."""
    data = head(*BROWSER)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 0, 1, 2, 20, 100])))
        data = data[:start] + draw(st.sampled_from([b"", *PIECES])) + data[end:]
    data += draw(st.sampled_from([b"", b"", data, head("Host: p")]))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=3)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def captured() -> dict[str, bytes]:
    """Heads as clients and reverse proxies sent them, by their names; of ours are only the names of hosts."""
    heads = json.loads(Path(__file__).with_name("captured_heads.json").read_text(encoding="ascii"))
    return {name: "\r\n".join((*lines, "", "")).encode("ascii") for name, lines in heads.items()}
