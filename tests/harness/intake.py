"""The intake in the test's own process: its routes before a desk, with two sites and their tokens."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import httpx
from starlette.applications import Starlette

from harness.clock import FakeClock
from harness.desk import MemoryDesk
from proxy.clock import SystemClock
from proxy.resilience.limiter import Rate
from proxy.syndication.accounts import FAILURES, AccountBook, TokenCheck
from proxy.syndication.desk import Desk
from proxy.syndication.documents import Documents
from proxy.syndication.durability import Durability, StoreConfig
from proxy.syndication.intake import Intake, IntakePolicy, PublishNow
from proxy.syndication.problems import CODES
from proxy.syndication.routes import SyndicationRoutes
from proxy.syndication.waiting import Waiters, WaitPolicy
from proxy.syntax import instant_text
from proxy.tenants import Tenants

BLOG, NEWS, WIDE = "blog-token-blog-token-1", "news-token-news-token-1", "wide-token-wide-token-1"
SECRETS = {
    "BLOG_TOKEN": BLOG,
    "BLOG_TOKEN_OLD": "blog-token-blog-token-0",
    "NEWS_TOKEN": NEWS,
    "WIDE_TOKEN": WIDE,
    "MAIN_PASSWORD": "main-password",
    "SIDE_PASSWORD": "side-password",
}
DID = "did:plc:main"
TENANTS = Tenants.model_validate(
    {
        "accounts": [
            {"name": "main", "identifier": "main.example", "password_env": "MAIN_PASSWORD"},
            {"name": "side", "identifier": "did:plc:side", "password_env": "SIDE_PASSWORD"},
        ],
        "sites": [
            {
                "name": "blog",
                "token_env": ["BLOG_TOKEN", "BLOG_TOKEN_OLD"],
                "accounts": ["main", "side"],
                "hosts": ["blog.example", "alt.example:8443"],
                "max_waiting": 5000,
                "posts_per_hour": 100_000,
            },
            {"name": "wide", "token_env": "WIDE_TOKEN", "accounts": ["main", "side"]},
            {
                "name": "news",
                "token_env": "NEWS_TOKEN",
                "accounts": ["side"],
                "max_waiting": 3,
                "unpublish": "delete",
            },
        ],
    }
)


@dataclass
class Office:
    """A running intake. `dids` are those known of accounts; `draining` ends what waits.

    `forgiven` are the accounts whose login a person wanted tried again.
    """

    client: httpx.AsyncClient
    app: Starlette
    desk: Any
    clock: FakeClock | SystemClock
    book: AccountBook
    draining: asyncio.Event
    waiters: Waiters
    dids: dict[str, str]
    forgiven: list[str]
    opened_at: float

    def post(self, **changes: object) -> dict[str, Any]:
        """A post published a minute before the office opened."""
        return {
            "id": "1",
            "url": "https://blog.example/1",
            "title": "A title",
            "published_at": rfc3339(self.opened_at - 60),
            **changes,
        }

    async def send(
        self, document: object = None, *, path: str = "/syndicate", token: str = BLOG, **headers: str
    ) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        document = self.post() if document is None else document
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        return await self.client.post(
            path,
            content=content,
            headers={"authorization": f"Bearer {token}", "content-type": "application/json", **named},
        )

    async def ask(
        self, path: str, *, method: str = "GET", token: str = BLOG, **headers: str
    ) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.request(method, path, headers={"authorization": f"Bearer {token}", **named})


def build_office(
    clock: FakeClock | SystemClock,
    desk: Desk | None = None,
    *,
    publish_now: PublishNow | None = None,
    waiting: WaitPolicy | None = None,
    config: StoreConfig | None = None,
    public_url: str | None = None,
    failures: Rate = FAILURES,
) -> Office:
    """The intake before `desk`, or one in memory; `config` is what the store says of itself."""
    desk = desk or MemoryDesk(clock)
    book = AccountBook(TENANTS, SECRETS)
    draining = asyncio.Event()
    dids: dict[str, str] = {"main": DID}

    forgiven: list[str] = []

    async def known_did(account):
        return dids.get(account.name, "")

    async def forgive(account):
        forgiven.append(account.name)

    intake = Intake(
        desk,
        book,
        clock,
        IntakePolicy(max_post_age_s=7 * 86400),
        documents=Documents(book, Durability(config or desk.config, clock), known_did, base=public_url or ""),
        forgive=forgive,
        publish_now=publish_now,
    )
    waiters = Waiters(intake, draining, waiting or WaitPolicy())
    tokens = TokenCheck(book, clock, failures=failures)
    routes = SyndicationRoutes(intake, tokens, waiters, public_url=public_url)
    app = Starlette(routes=routes.routes())
    app.router.redirect_slashes = False
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    client = httpx.AsyncClient(transport=transport, base_url="http://proxy.test")
    return Office(client, app, desk, clock, book, draining, waiters, dids, forgiven, clock.wall())


@contextlib.asynccontextmanager
async def running_office(*args: Any, **options: Any) -> AsyncIterator[Office]:
    """An office with its client closed at the end."""
    office = build_office(*args, **options)
    async with office.client:
        yield office


class Listener:
    """A client of an event stream, straight at the application, as it would be behind a server."""

    def __init__(self, office: Office, path: str, *, token: str = BLOG, **headers: str) -> None:
        named = {"authorization": f"Bearer {token}", **{n.replace("_", "-"): v for n, v in headers.items()}}
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "scheme": "http",
            "server": ("proxy.test", 80),
            "client": ("203.0.113.5", 1),
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        }
        self._app = office.app
        self._gone = asyncio.Event()
        self._asked = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.ended = False
        self.running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.running = asyncio.create_task(self._app(self._scope, self._receive, self._send))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.hang_up()
        assert self.running is not None
        async with asyncio.timeout(20):
            await self.running

    def hang_up(self) -> None:
        """The client goes away."""
        self._gone.set()

    def events(self) -> list[dict[str, Any]]:
        """The documents of all `status` events so far."""
        found = []
        for block in self.text.split("\n\n"):
            fields = dict(line.partition(": ")[::2] for line in block.split("\n") if not line.startswith(":"))
            if fields.get("event") == "status":
                found.append({**json.loads(fields["data"]), "event_id": fields["id"]})
        return found

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.text += message["body"].decode()
            self.ended = not message.get("more_body", False)


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """`answer` is that problem; the document."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, "about:blank")
    assert CODES[code][0] == status
    assert answer.headers["cache-control"] == "no-store"
    return problem


def rfc3339(at: float) -> str:
    """An instant in seconds since 1970, as a CMS writes it."""
    return instant_text(datetime.fromtimestamp(at, UTC))
