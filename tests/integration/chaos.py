"""The whole write path under fire: posts go in through `serve` while workers and the store are killed.

A CMS posts through HTTP until it is told that each post is kept. Four `feedproxy worker` work; every second
one of them is killed and replaced. The store is killed and started again, and a proxy before the PDS loses
answers. The seed decides what is lost, who is killed, and after which write the store dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from harness.lossy import LossyProxy
from harness.queue import QueueOfTest
from harness.redis_servers import RedisServer
from harness.waiting import until
from integration.nursery import Nursery
from integration.processes import ServeProcess, environment

NAMESPACE: Final = "chaos"
APPEND_ALWAYS: Final = ("--appendonly", "yes", "--appendfsync", "always")
TOKEN: Final = "the-token-of-a-blog-never-to-be-seen"
WORKERS: Final = 4
LOST_SHARE: Final = 0.2
KILL_EVERY_S: Final = 1.0
LEASE_S: Final = 4.0
# Posts an hour old are looked for among what is there before they are sent.
_OLD_SHARE: Final = 0.3
_SAID_AGAIN_SHARE: Final = 0.1
_SENDERS: Final = 4
# So far ahead of what is published the CMS sends: its posts come all the time, not at the start.
_AHEAD: Final = 40
_RESEND_S: Final = 0.1
_LOOK_S: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class Person:
    """Whose account it is."""

    name: str
    did: str
    identifier: str
    password: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything."""

    seed: int
    jobs: int
    outages: int

    @property
    def deadline_s(self) -> float:
        return 120 + 1.2 * self.jobs

    def draw(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what}")

    def outages_after(self, records: int) -> list[int]:
        """After how many of the `records` the store is killed: now and then, from the first to the last."""
        draw, share = self.draw("outages"), records / self.outages
        return [round(share * (number + draw.uniform(0.05, 0.95))) for number in range(self.outages)]


def tenants_of(people: Sequence[Person]) -> str:
    """feedproxy.toml with these accounts, and a site that posts to all of them."""
    tables = [
        "[[sites]]",
        'name = "blog"',
        'token_env = "CHAOS_TOKEN"',
        f"accounts = {[person.name for person in people]}",
        "posts_per_hour = 100000",
    ]
    for person in people:
        tables += [
            "[[accounts]]",
            f'name = "{person.name}"',
            f'identifier = "{person.identifier}"',
            f'password_env = "{_variable(person)}"',
        ]
    return "\n".join(tables)


def _variable(person: Person) -> str:
    return f"CHAOS_{person.name.upper()}"


def secrets_of(people: Sequence[Person]) -> dict[str, str]:
    """The environment that `tenants_of` points at."""
    return {"CHAOS_TOKEN": TOKEN, **{_variable(person): person.password for person in people}}


class Cms:
    """Sends each post until it is told that it is kept, as a CMS does.

    `kept` are the answers that said so, by post: 202 with a job, or 200 when it was published at once.
    """

    def __init__(self, base_url: str, plan: Plan) -> None:
        self._client = httpx.AsyncClient(
            base_url=base_url, headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=15
        )
        self._started_at = datetime.now(UTC)
        self._plan = plan
        self.kept: dict[int, dict[str, Any]] = {}
        self.answers: Counter[str] = Counter()
        self.again: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def document(self, number: int) -> dict[str, Any]:
        """The post, in the same words whenever it is asked for."""
        old = self._plan.draw(f"age {number}").random() < _OLD_SHARE
        published_at = self._started_at - timedelta(hours=1 if old else 0)
        return {
            "id": str(number),
            "url": f"https://blog.example/{number}",
            "title": f"Post {number}",
            "published_at": published_at.isoformat(),
        }

    async def post(self, number: int) -> httpx.Response | None:
        """Send it once; None if there was no whole answer."""
        try:
            answer = await self._client.post("/syndicate", json=self.document(number))
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        return answer

    async def insist(self, number: int) -> dict[str, Any]:
        """Send it until it is kept."""
        while True:
            answer = await self.post(number)
            if answer is not None and answer.status_code in (200, 202):
                return answer.json()
            assert answer is None or answer.status_code == 503, answer.text
            await asyncio.sleep(_RESEND_S)

    async def deliver(self, number: int) -> None:
        """Send it until it is kept, and some of them once more, as when an editor saves."""
        self.kept[number] = await self.insist(number)
        if self._plan.draw(f"again {number}").random() < _SAID_AGAIN_SHARE:
            self.again.append((self.kept[number], await self.insist(number)))

    async def status(self, job: str) -> dict[str, Any]:
        return (await self._client.get(f"/syndicate/{job}")).json()

    async def aclose(self) -> None:
        await self._client.aclose()


class Chaos:
    """One run. `disturb` is called after each outage of the store."""

    def __init__(
        self,
        plan: Plan,
        people: Sequence[Person],
        pds: LossyProxy,
        server: RedisServer,
        directory: Path,
        *,
        identities_url: str,
        disturb: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = plan
        self.people = people
        self.pds = pds
        self.server = server
        self.directory = directory
        self._disturb = disturb
        tenants = directory / "feedproxy.toml"
        tenants.write_text(tenants_of(self.people))
        self._settings = {
            "REDIS_URL": server.url,
            "NAMESPACE": NAMESPACE,
            "CONFIG": tenants,
            "UPSTREAM": identities_url,
            "PLC_URL": identities_url,
            "LEASE_S": LEASE_S,
            "PDS_RPS": 40,
            "SYNDICATION_RETRY_DELAYS": ",".join(["0.2", "0.5", *["1"] * 12]),
            "ACCOUNT_BREAKER_COOLDOWN": 1,
        }
        self._redis = redis.Redis(unix_socket_path=str(server.socket), retry=Retry(NoBackoff(), 0))
        self._nursery = Nursery(environment(directory, **self._settings), directory / "workers.log")
        self._workers: list[int] = []  # pids; each place is taken over when its worker is killed
        self._killed = 0
        self.serve = ServeProcess(directory / "serve", **self._settings)
        self._unsent = iter(range(1, plan.jobs))
        self._sent = 1
        self._wall_s = 0.0
        self.exits: list[int] = []
        self.shown: dict[int, dict[str, Any]] = {}

    async def run(self) -> Cms:
        """From the first post to the last; raises TimeoutError. What the CMS knows then."""
        with self.serve, self._nursery as nursery:
            self._workers = [nursery.start() for _ in range(WORKERS)]
            await asyncio.to_thread(self.serve.wait_ready)
            cms = Cms(self.serve.base_url, self.plan)
            async with asyncio.timeout(self.plan.deadline_s):
                # Whoever is killed between a login and its answer has to log in again: that comes first.
                await cms.deliver(0)
                await self._until(lambda: self._records >= len(self.people))
                began_at = time.monotonic()
                await self._under_fire(cms)
                self._wall_s = time.monotonic() - began_at
                self.shown = await self._shown(cms)
            self.exits = [await asyncio.to_thread(nursery.stop, pid) for pid in self._at_work()]
            self.exits.append(await asyncio.to_thread(self.serve.terminate))
            await cms.aclose()
        return cms

    async def _under_fire(self, cms: Cms) -> None:
        async with asyncio.TaskGroup() as group:
            firing = [group.create_task(self._kill_workers()), group.create_task(self._kill_store(cms))]
            sending = [group.create_task(self._send(cms)) for _ in range(_SENDERS)]
            await asyncio.wait([firing[1], *sending])
            await self._until(self._nothing_lives)
            firing[0].cancel()

    async def _send(self, cms: Cms) -> None:
        for number in self._unsent:
            await self._until(lambda: self._sent < self._records / len(self.people) + _AHEAD)
            self._sent += 1
            await cms.deliver(number)

    async def _kill_workers(self) -> None:
        """One a second; later where the one before takes longer to be replaced."""
        draw = self.plan.draw("workers")
        while True:
            await asyncio.sleep(KILL_EVERY_S)
            await self._until(lambda: len(self._at_work()) == WORKERS)
            place = draw.randrange(WORKERS)
            self._nursery.kill(self._workers[place])
            self._workers[place] = self._nursery.start()
            self._killed += 1

    def _at_work(self) -> list[int]:
        """Pids of workers that have been heard of in the store; none while that is away."""
        with contextlib.suppress(redis.RedisError):
            names = self._redis.zrange(f"{NAMESPACE}:{{q}}:workers", 0, -1)
            heard = {int(name.decode().rsplit("-", 2)[1]) for name in names}
            return [pid for pid in self._workers if pid in heard]
        return []

    async def _kill_store(self, cms: Cms) -> None:
        """The seed says when. While it is away no post is kept, whatever the CMS sends."""
        draw = self.plan.draw("store")
        for records in self.plan.outages_after(self.plan.jobs * len(self.people)):
            await self._until(lambda least=records: self._records >= least)
            self.server.kill()
            answer = await cms.post(draw.randrange(self.plan.jobs))
            assert answer is None or answer.status_code != 202, answer.text
            await asyncio.sleep(draw.uniform(0, 1))
            await asyncio.to_thread(self.server.start)
            self._disturb()

    @property
    def _records(self) -> int:
        return len(self.pds.commits)

    def _nothing_lives(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return self._redis.zcard(f"{NAMESPACE}:{{q}}:live") == 0
        return False

    async def _until(self, condition: Callable[[], Any]) -> Any:
        return await until(condition, deadline_s=self.plan.deadline_s, every_s=_LOOK_S)

    async def _shown(self, cms: Cms) -> dict[int, dict[str, Any]]:
        """Each post as the CMS sees it at the end."""
        return {
            number: await cms.status(answer["id"]) if answer["id"] else answer
            for number, answer in cms.kept.items()
        }

    def log_text(self) -> str:
        return self.serve.log_text() + (self.directory / "workers.log").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """What was logged under that name by anybody."""
        found = []
        for line in self.log_text().splitlines():
            with contextlib.suppress(ValueError):  # who is killed may be killed over a line
                event = json.loads(line)
                if event.get("event") == name:
                    found.append(event)
        return found

    def report(self, cms: Cms, stored: QueueOfTest) -> dict[str, Any]:
        """What happened, in numbers."""
        longest_ms, slowest = max(
            (
                (int(job["finished_at_ms"]) - int(job["created_at_ms"]), deliveries)
                for job, deliveries in stored.folded().values()
            ),
            key=lambda kept: kept[0],
        )
        return {
            **asdict(self.plan),
            "wall_s": round(self._wall_s, 1),
            "records": self._records,
            "workers_killed": self._killed,
            "answers_lost": dict(self.pds.lost),
            "asked_of_pds": dict(Counter(call.name for call in self.pds.requests)),
            "answers_to_cms": dict(cms.answers),
            "slowest_job_s": longest_ms / 1000,
            "its_attempts": [int(delivery["attempts"]) for delivery in slowest],
            "taken_back": len(self.events("delivery_taken_back")),
            "repairs": [event["repair"] for event in self.events("queue_repaired")],
        }
