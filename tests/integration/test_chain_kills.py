"""Workers die between the steps of chains: each post is published once, each end told under one id."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from harness.crossing import AFTER, BEFORE, SCRIPTS, Cut
from harness.receiver import Receiver
from harness.redis_servers import redis_server
from harness.waiting import DEADLINE_S
from harness.workers import WorkerProcess, nursery_in
from integration.fleet import Fleet
from integration.publishing import post_of
from proxy.syndication.job import POISON_DELIVERIES
from proxy.syndication.overview import DeadFilter

# Where a step of a chain ends, or the next begins.
STEPS = frozenset({"page", "queue_enrich", "putRecord", "queue_finish", "hook", "queue_notify"})
# So many posts wait or are under way while workers are killed.
AT_A_TIME = 8
# Nobody loses a lease here but by death.
LEASE_S = 20
PROOF_EVERY = 25
POISON = f"poison: {POISON_DELIVERIES} workers in a row were lost over it"


class Killer:
    """Kills the worker at the first crossing of a step that is the one that was aimed at."""

    def __init__(self) -> None:
        self.worker: WorkerProcess
        self.struck = asyncio.Event()
        self.where: Counter[str] = Counter()

    def aim(self, at: Callable[[str], bool]) -> None:
        """At the first crossing of the next worker, told as "after putRecord", that is `at` it."""
        self._at = at
        self.struck.clear()

    async def __call__(self, name: str, when: str) -> None:
        if self.struck.is_set():
            raise Cut
        crossing = f"{when} {name}"
        if name in STEPS and self._at(crossing):
            self.struck.set()
            self.where[crossing] += 1
            self.worker.kill()
            raise Cut


class Posts:
    """The posts of a run, each called back."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.jobs: list[str] = []
        self.links: list[str] = []

    async def keep_coming(self) -> None:
        """Some wait at any time."""
        stored, cms = self._fleet.stored, self._fleet.cms
        while len(self.jobs) - stored.redis.zcard(stored.key("done")) < AT_A_TIME:
            number = len(self.jobs)
            post = post_of(str(number), url=f"{cms.url}/{number}/page")
            self.links.append(post.url)
            self.jobs.append(await self._fleet.enqueue(post, callback_url=cms.hook, enrich=True))


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        with contextlib.closing(redis.Redis.from_url(running.url)) as client:
            for script in SCRIPTS:
                client.script_load(script.text)  # all workers find the same
        yield running


@pytest.fixture(scope="module")
def nursery():
    # Not tmp_path: names of sockets are short.
    with tempfile.TemporaryDirectory(prefix="fp-") as directory, nursery_in(Path(directory)) as running:
        yield running


@pytest.mark.timeout(3600)  # for the long form; each wait has a deadline of its own
async def test_no_chain_is_stranded_and_each_end_is_told_under_one_id(nursery, server, chaos_plan):
    """What five workers in a row were lost over is a dead letter, which an operator has tried again."""
    plan, killer, brought_back = chaos_plan(25), Killer(), Counter()
    draw = plan.draw("steps")
    async with Fleet(nursery, server.url, LEASE_S=LEASE_S) as fleet:
        await fleet.log_in()
        posts = Posts(fleet)
        for number in range(plan.jobs):
            await posts.keep_coming()
            await killed_once(fleet, killer, somewhere(fleet, draw))
            if number % PROOF_EVERY == 0:
                await prove_sound(fleet)
                brought_back += await retry_the_dead(fleet)
        with fleet.one_more_worker():
            await fleet.over()
            brought_back += await retry_the_dead(fleet)
            await fleet.over()
        await prove_sound(fleet)
        sys.stdout.write(f"{report(killer, fleet.cms, posts, brought_back)}\n")
        assert fleet.stored.states() == {"done": len(posts.jobs)}
        assert Counter(fleet.links()) == dict.fromkeys(posts.links, 1)
        ends = ends_told(fleet.cms)
        assert ends.pop("completed") == dict.fromkeys(posts.jobs, 1)
        # What is tried again before it is told that it failed overtakes that.
        assert ends.pop("failed", Counter()) <= brought_back
        assert ends == {}


@pytest.mark.parametrize(
    ("place", "dies", "degraded"),
    [
        (f"{AFTER} page", False, [f"the page: {POISON}"]),
        (f"{BEFORE} queue_finish", True, []),
        (f"{BEFORE} queue_notify", False, []),
    ],
)
async def test_the_same_step_of_a_chain_takes_no_more_than_five_workers_with_it(
    nursery, server, place, dies, degraded
):
    """The page is done without, the CMS told later; what a person has tried again is one post still."""
    killer = Killer()
    async with Fleet(nursery, server.url, LEASE_S=LEASE_S) as fleet:
        await fleet.log_in()
        post = post_of("1", url=f"{fleet.cms.url}/page")
        job = await fleet.enqueue(post, callback_url=fleet.cms.hook, enrich=True)
        for _ in range(POISON_DELIVERIES):
            await killed_once(fleet, killer, lambda crossing: crossing == place)
            await prove_sound(fleet)
        with fleet.one_more_worker():
            await fleet.over()
            assert await retry_the_dead(fleet) == ({job: 1} if dies else {})
            await fleet.over()
        await prove_sound(fleet)
        assert fleet.stored.states() == {"done": 1}
        assert fleet.links() == [post.url]
        assert (
            ends_told(fleet.cms) == {"failed": {job: 1}, "completed": {job: 1}}
            if dies
            else {"completed": {job: 1}}
        )
        _, last = fleet.cms.heard[-1]
        assert last["accounts"][0]["degraded"] == degraded


def somewhere(fleet: Fleet, draw: random.Random) -> Callable[[str], bool]:
    """Where the draw says, from the worker's start; later where more deaths would make a dead letter."""
    spared = any(int(each.get("deliveries", 0)) >= 2 for each in fleet.stored.deliveries().values())
    crossings, number = itertools.count(1), draw.randrange(1, 16) + (20 if spared else 0)
    return lambda _: next(crossings) == number


async def killed_once(fleet: Fleet, killer: Killer, at: Callable[[str], bool]) -> None:
    """A worker that lives until it is killed."""
    killer.aim(at)
    killer.worker = await fleet.gated_worker(killer)
    async with asyncio.timeout(DEADLINE_S):
        await killer.struck.wait()
    fleet.go_on_without_the_dead()


async def retry_the_dead(fleet: Fleet) -> Counter[str]:
    """As `feedproxy dead retry --all` does; the jobs. Nothing dies but of workers that were lost over it."""
    _, count, texts = await fleet.queue.dead("list", DeadFilter(), "", 100)
    letters = [json.loads(text) for text in texts]
    assert [letter["error"] for letter in letters] == [POISON] * count
    _, retried, _ = await fleet.queue.dead("retry", DeadFilter(), "", 100)
    assert retried == count
    return Counter(letter["job"] for letter in letters)


async def prove_sound(fleet: Fleet) -> None:
    assert await fleet.queue.reconcile() == ("0", [])
    assert fleet.stored.faults() == []


def ends_told(cms: Receiver) -> dict[str, Counter[str]]:
    """How often each job was said to have ended so, by status; what came under one id says one thing."""
    told: dict[str, tuple[str, str]] = {}
    for message_id, document in cms.heard:
        end = (document["status"], document["id"])
        assert told.setdefault(message_id, end) == end
    ends: dict[str, Counter[str]] = {}
    for status, job in told.values():
        ends.setdefault(status, Counter())[job] += 1
    return ends


def report(killer: Killer, cms: Receiver, posts: Posts, brought_back: Counter[str]) -> dict[str, object]:
    """What happened, in numbers."""
    again = Counter(Counter(message_id for message_id, _ in cms.heard).values())
    degraded = Counter(
        reason
        for document in {document["id"]: document for _, document in cms.heard}.values()
        for reason in document["accounts"][0]["degraded"]
    )
    return {
        "kills": killer.where.total(),
        "where": dict(sorted(killer.where.items())),
        "posts": len(posts.jobs),
        "dead_letters_retried": brought_back.total(),
        "degraded": dict(degraded),
        "callbacks_heard": len(cms.heard),
        "so_often_each": dict(sorted(again.items())),
    }
