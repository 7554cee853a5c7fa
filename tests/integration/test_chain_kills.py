"""Workers die between the steps of chains: each post is published once, its end told of under one id."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import redis

from harness.crossing import SCRIPTS, Cut
from harness.receiver import Receiver
from harness.redis_servers import redis_server
from harness.waiting import DEADLINE_S
from harness.workers import WorkerProcess, nursery_in
from integration.fleet import Fleet
from integration.publishing import post_of

# Where a step of a chain ends, or the next begins.
STEPS = frozenset({"page", "queue_enrich", "putRecord", "queue_finish", "hook", "queue_notify"})
# So many posts wait or are under way while workers are killed.
AT_A_TIME = 8
# Nobody loses a lease here but by death.
LEASE_S = 20
PROOF_EVERY = 25


class Killer:
    """Kills the worker at the crossing that the draw says, counted from the worker's start."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.worker: WorkerProcess
        self.struck = asyncio.Event()
        self.where: Counter[str] = Counter()

    def aim(self, *, spared: bool) -> None:
        """For the next worker, which is `spared` for longer where another death would make a dead letter."""
        self._left = self._draw.randrange(1, 16) + (20 if spared else 0)
        self.struck.clear()

    async def __call__(self, name: str, when: str) -> None:
        if self.struck.is_set():
            raise Cut
        if name not in STEPS:
            return
        self._left -= 1
        if self._left == 0:
            self.struck.set()
            self.where[f"{when} {name}"] += 1
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


@pytest.mark.timeout(3600)  # for the long form; each wait has a deadline of its own
async def test_no_chain_is_stranded_and_each_end_is_told_under_one_id(chaos_plan):
    plan = chaos_plan(25)
    killer = Killer(plan.draw("steps"))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis_server())
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            for script in SCRIPTS:
                client.script_load(script.text)
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="fp-"))
        nursery = stack.enter_context(nursery_in(Path(directory)))
        async with Fleet(nursery, server.url, LEASE_S=LEASE_S) as fleet:
            await fleet.log_in()
            posts = Posts(fleet)
            for number in range(plan.jobs):
                await posts.keep_coming()
                await killed_once(fleet, killer)
                if number % PROOF_EVERY == 0:
                    await prove_sound(fleet)
            with fleet.one_more_worker():
                await fleet.over()
            await prove_sound(fleet)
            sys.stdout.write(f"{report(killer, fleet.cms, posts)}\n")
            assert fleet.stored.states() == {"done": len(posts.jobs)}
            assert Counter(fleet.links()) == dict.fromkeys(posts.links, 1)
            ids = defaultdict(set)
            for message_id, document in fleet.cms.heard:
                assert document["status"] == "completed"
                ids[document["id"]].add(message_id)
            assert {job: len(of_job) for job, of_job in ids.items()} == dict.fromkeys(posts.jobs, 1)


async def killed_once(fleet: Fleet, killer: Killer) -> None:
    """A worker that lives until it is killed."""
    killer.aim(spared=any(int(each.get("deliveries", 0)) >= 2 for each in fleet.stored.deliveries().values()))
    killer.worker = await fleet.gated_worker(killer)
    async with asyncio.timeout(DEADLINE_S):
        await killer.struck.wait()
    fleet.go_on_without_the_dead()


async def prove_sound(fleet: Fleet) -> None:
    assert await fleet.queue.reconcile() == ("0", [])
    assert fleet.stored.faults() == []


def report(killer: Killer, cms: Receiver, posts: Posts) -> dict[str, object]:
    """What happened, in numbers."""
    again = Counter(Counter(message_id for message_id, _ in cms.heard).values())
    return {
        "kills": killer.where.total(),
        "where": dict(sorted(killer.where.items())),
        "posts": len(posts.jobs),
        "callbacks_heard": len(cms.heard),
        "so_often_each": dict(sorted(again.items())),
    }
