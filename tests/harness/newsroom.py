"""Hosts that take posts in and publish them, built as in production, around one store and PDSs of our own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from harness.pds import Directory, PdsServer
from harness.queue import QueueOfTest
from harness.waiting import until
from proxy.clock import SystemClock
from proxy.composition.syndicating import Syndication, syndicating
from proxy.observing import Process
from proxy.settings import Settings, load_settings
from proxy.syndication.worker import Worker
from proxy.tally import Board, Totals

PASSWORD = "app-password-of-everybody"
# Nothing holds a test up but what it is about.
UNHURRIED = {"PDS_RPS": 10_000, "PDS_BURST": 10_000, "SYNDICATION_RETRY_DELAYS": "0,0,0"}
# A feedproxy.toml; its secrets are PASSWORD and token_of("blog").
ONE_ACCOUNT = """
[[accounts]]
name = "main"
identifier = "did:plc:alice"
password_env = "PASSWORD_main"

[[sites]]
name = "blog"
token_env = "TOKEN_blog"
accounts = ["main"]
"""


def token_of(site: str) -> str:
    """The bearer token of a site."""
    return f"{site}-token-of-the-site"


def published_at(age_s: float = 60.0) -> str:
    """An instant so long ago, as a CMS writes it."""
    return (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()


@dataclass
class HostOfTest:
    """One host: its intake behind `client`, and its workers."""

    client: httpx.AsyncClient
    posts: Syndication
    settings: Settings
    board: Board
    workers: list[Worker] = field(default_factory=list)

    def counted(self) -> Totals:
        """What /metrics would tell of its process."""
        now = time.monotonic()
        self.posts.instruments.tally.beat(now)
        return self.board.totals(now)

    def post(self, number: int | str = 1, **changes: Any) -> dict[str, Any]:
        """A post of the site blog."""
        return {
            "id": str(number),
            "url": f"https://blog.example/{number}",
            "title": f"Post {number}",
            "published_at": published_at(),
            **changes,
        }

    async def send(
        self, document: Any = None, *, site: str = "blog", path: str = "/syndicate", **headers: str
    ) -> httpx.Response:
        """Post as the site's CMS does."""
        return await self._request("POST", path, site, headers, self.post() if document is None else document)

    async def ask(self, path: str, *, method: str = "GET", site: str = "blog") -> httpx.Response:
        """Ask as the site's CMS does."""
        return await self._request(method, path, site, {})

    async def shown(
        self, job: dict[str, Any], account: str = "main", *, site: str = "blog"
    ) -> dict[str, Any]:
        """How the job stands on one account."""
        body = (await self.ask(job["links"]["self"], site=site)).json()
        return next(each for each in body["accounts"] if each["account"] == account)

    async def until_shown(
        self, job: dict[str, Any], account: str = "main", *, site: str = "blog", **wanted: Any
    ) -> dict[str, Any]:
        """How the job stands on one account, once it does as `wanted`."""

        async def as_wanted() -> dict[str, Any] | None:
            shown = await self.shown(job, account, site=site)
            return shown if wanted.items() <= shown.items() else None

        return await until(as_wanted)

    @contextlib.asynccontextmanager
    async def working(self, count: int = 1) -> AsyncIterator[None]:
        """So many workers of this host at work."""
        await self.posts.book.current.warm()
        workers = [self.posts.worker(self.settings, SystemClock()) for _ in range(count)]
        self.workers += workers
        tasks = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()
                self.workers.remove(worker)
            await asyncio.gather(*tasks)

    async def _request(
        self, method: str, path: str, site: str, headers: Mapping[str, str], document: Any = None
    ) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = None
        if document is not None:
            content = json.dumps(document).encode()
            named["content-type"] = "application/json"
        named["authorization"] = f"Bearer {token_of(site)}"
        return await self.client.request(method, path, content=content, headers=named)


class Newsroom:
    """A directory, two PDSs that host one account each, and hosts around the store at `url`."""

    def __init__(self, url: str, namespace: str, path: Path) -> None:
        self.url = url
        self.namespace = namespace
        self.stored = QueueOfTest(url, namespace)
        self.directory = Directory()
        self.alices, self.bobs = PdsServer(self.directory), PdsServer(self.directory)
        self.alice, self.bob = "did:plc:alice", "did:plc:bob"
        self._path = path
        self._numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Newsroom]:
        """The servers up for as long as the block lasts."""
        async with self.directory, self.alices, self.bobs:
            self.alices.host(self.alice, "alice.test", PASSWORD)
            self.bobs.host(self.bob, "bob.test", PASSWORD)
            yield self
        self.stored.redis.close()

    @contextlib.asynccontextmanager
    async def host(
        self,
        accounts: Mapping[str, str] | None = None,
        sites: Mapping[str, Sequence[str]] | None = None,
        *,
        passwords: Mapping[str, str] | None = None,
        extra: str = "",
        **settings: Any,
    ) -> AsyncIterator[HostOfTest]:
        """A host whose feedproxy.toml has `accounts` (identifiers by name) and `sites` (accounts by name).

        `passwords` are those that differ from PASSWORD; `extra` goes behind each site; `settings` are names
        without prefix. Each host has a data directory of its own.
        """
        accounts = accounts or {"main": "alice.test", "side": "bob.test"}
        sites = sites or {"blog": ["main"]}
        number = next(self._numbers)
        config = self._path / f"feedproxy{number}.toml"
        config.write_text(_toml(accounts, sites, extra), encoding="utf-8")
        given = {
            "REDIS_URL": self.url,
            "NAMESPACE": self.namespace,
            "UPSTREAM": self.directory.url,
            "PLC_URL": self.directory.url,
            "DATA_DIR": self._path / f"data{number}",
            "CONFIG": config,
            **UNHURRIED,
            **settings,
        }
        environ = {f"FEEDPROXY_{name}": str(value) for name, value in given.items()}
        secrets = {f"PASSWORD_{name}": (passwords or {}).get(name, PASSWORD) for name in accounts}
        secrets |= {f"TOKEN_{site}": token_of(site) for site in sites}
        loaded = load_settings(environ | secrets)
        clock = SystemClock()
        process = Process()
        instruments = process.instruments(clock)
        async with syndicating(loaded, clock, secrets, instruments, lambda _names: None) as posts:
            app = Starlette(routes=posts.routes(loaded, clock, asyncio.Event()))
            transport = httpx.ASGITransport(app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://proxy.test") as client:
                yield HostOfTest(client, posts, loaded, process.board)

    @property
    def logins(self) -> int:
        return self._calls("createSession")

    @property
    def refreshes(self) -> int:
        return self._calls("refreshSession")

    def _calls(self, name: str) -> int:
        return sum(len(server.calls(name)) for server in (self.alices, self.bobs))


def _toml(accounts: Mapping[str, str], sites: Mapping[str, Sequence[str]], extra: str) -> str:
    tables = [
        f'[[accounts]]\nname = "{name}"\nidentifier = "{identifier}"\npassword_env = "PASSWORD_{name}"\n'
        for name, identifier in accounts.items()
    ]
    tables += [
        f'[[sites]]\nname = "{name}"\ntoken_env = "TOKEN_{name}"\naccounts = {json.dumps(list(names))}\n'
        f"posts_per_hour = 100000\n{extra}\n"
        for name, names in sites.items()
    ]
    return "\n".join(tables)
