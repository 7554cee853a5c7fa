"""Worker processes around one store, before a PDS of our own; their exchanges may be interfered with."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr

from harness.crossing import Crossing, redis_gate
from harness.pds import Directory, PdsServer, go_on
from harness.queue import POLICY, QueueOfTest, submission
from harness.receiver import Receiver
from harness.waiting import until
from harness.workers import Nursery, WorkerProcess
from integration.processes import environment
from integration.publishing import ALICE, PASSWORD, post_of
from proxy.clock import SystemClock
from proxy.store.queue_store import connect_queue
from proxy.syndication.post import Post
from proxy.syndication.queue import JobQueue
from proxy.syndication.signing import derived_secret

TOKEN = "the-token-of-the-site-blog"
TENANTS = """
[[accounts]]
name = "main"
identifier = "alice.test"
password_env = "PASSWORD_OF_MAIN"

[[sites]]
name = "blog"
token_env = "TOKEN_OF_BLOG"
accounts = ["main"]
unpublish = "delete"
"""


def settings_of(
    directory: Path, redis_url: str, namespace: str, *, plc: str, resolver: str, tenants: str, **settings: Any
) -> dict[str, str]:
    """The environment of a process of the fleet."""
    config = directory / f"{namespace}.toml"
    config.write_text(tenants, encoding="utf-8")
    given = {
        "REDIS_URL": redis_url,
        "NAMESPACE": namespace,
        "CONFIG": config,
        "PLC_URL": plc,
        "UPSTREAM": resolver,
        "ENRICH_ALLOW": "127.0.0.1/32",
        "PDS_RPS": 10_000,
        "PDS_BURST": 1000,
        "SYNDICATION_RETRY_DELAYS": "0.05,0.05,0.05",
        **settings,
    }
    return environment(directory, **given) | {"PASSWORD_OF_MAIN": PASSWORD, "TOKEN_OF_BLOG": TOKEN}


class Stored(QueueOfTest):
    """The queue, seen from behind, and its sessions."""

    def hurry(self) -> None:
        """What waits for a login, a gate or another callback waits no longer, as if minutes had passed."""
        for name in self.scores("delayed"):
            if "::" in name:
                self.redis.zadd(self.key("delayed"), {name: 0}, xx=True)
        for name in self.keys("sessions:*"):
            for field in ("login_after", "held_until"):
                if self.redis.hexists(self.key(name), field):
                    self.redis.hset(self.key(name), field, 0)
        now = time.time() * 1000
        for name in self.keys("account:*"):
            account = name.removeprefix("account:")
            # One that opens by itself any moment now is left to do so.
            if float(self.hash(name).get("gate_until_ms", 0)) > now + 5000:
                self.redis.hset(self.key(name), "gate_until_ms", round(now))
                self.redis.zadd(self.key("gates"), {account: now}, xx=True)

    def delete_queue(self) -> None:
        """Forget all posts; logins and accounts stay known."""
        for name in self.keys():
            if name not in ("pins", "pace") and not name.startswith("sessions:"):
                self.redis.delete(self.key(name))


class Fleet:
    """A queue, an account on a PDS, and workers for it. `async with` starts and ends it."""

    def __init__(self, nursery: Nursery, redis_url: str, **settings: Any) -> None:
        self.namespace = f"fleet-{uuid.uuid4().hex[:12]}"
        self.stored = Stored(redis_url, self.namespace)
        self._nursery = nursery
        self._directory = nursery.directory
        self._settings = settings
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.directory = await self._exits.enter_async_context(Directory())
        self.pds = await self._exits.enter_async_context(PdsServer(self.directory))
        self.alice = self.pds.host(ALICE, "alice.test", PASSWORD)
        clock = SystemClock()
        store = connect_queue(SecretStr(self.stored.url), clock)
        self._exits.push_async_callback(store.aclose)
        self.queue = JobQueue(store, clock, POLICY, namespace=self.namespace)
        self._exits.push_async_callback(self.queue.aclose)
        self._exits.callback(self.stored.close)
        self.cms = await self._exits.enter_async_context(Receiver(derived_secret(TOKEN, "blog")))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exits.aclose()

    def worker(self, redis_url: str = "") -> WorkerProcess:
        """A worker process; on another way to the store if one is given. It dies with the fleet."""
        environ = settings_of(
            self._directory,
            redis_url or self.stored.url,
            self.namespace,
            plc=self.directory.url,
            resolver=self.directory.url,
            tenants=TENANTS,
            **self._settings,
        )
        worker = self._nursery.start(environ)
        self._exits.callback(worker.kill)
        return worker

    @contextlib.contextmanager
    def one_more_worker(self) -> Iterator[WorkerProcess]:
        """A worker for as long as the block lasts."""
        worker = self.worker()
        yield worker
        worker.stop()

    async def gated_worker(self, crossing: Crossing, *, twice: bool = False) -> WorkerProcess:
        """A worker whose exchanges with store, PDS and directory all come to `crossing`."""
        self.pds.crossing = self.directory.crossing = self.cms.crossing = crossing
        socket = self._directory / f"{uuid.uuid4().hex[:8]}.s"
        target = Path(self.stored.url.removeprefix("unix://"))
        url = await self._exits.enter_async_context(redis_gate(socket, target, crossing, twice=twice))
        return self.worker(url)

    def let_pass(self) -> None:
        """Whatever comes to PDS and directory from now on is let through."""
        self.pds.crossing = self.directory.crossing = self.cms.crossing = go_on

    async def enqueue(self, post: Post, **changes: Any) -> str:
        """Hand in the post as intake does; the job."""
        given = {
            "payload": post.canonical(),
            "url_hash": post.url_hash(),
            "published_at_ms": post.published_at_ms,
            "unpublish": "delete",
            **changes,
        }
        return (await self.queue.enqueue(submission(post.id, **given))).job

    async def log_in(self) -> None:
        """The account has a session, as a process of earlier days has left it."""
        await self.enqueue(post_of("earlier"))
        with self.one_more_worker():
            await self.over()
        self.stored.delete_queue()
        self.alice.records.clear()

    async def over(self) -> None:
        """Return when all deliveries and errands have ended; what waits for a login or its turn need not."""

        def ended() -> bool:
            self.stored.hurry()
            live = {"ready", "active", "delayed"}
            return not (set(self.stored.states()) & live or self.stored.errands())

        await until(ended, every_s=0.02)

    def go_on_without_the_dead(self) -> None:
        """Its lease has ended, and the pause after a login that it may not have survived."""
        self.let_pass()
        for worker in self.stored.scores("workers"):
            self.stored.silence_worker(worker)
        self.stored.hurry()

    def links(self) -> list[str]:
        """Where the records of the account lead."""
        facets = [facet for record in self.pds.posts(ALICE) for facet in record.get("facets", ())]
        return [feature["uri"] for facet in facets for feature in facet["features"]]
