"""A worker frozen past its lease: another does its job, and when it wakes it changes nothing."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import pytest

from harness.crossing import AFTER, BEFORE
from harness.redis_servers import redis_server
from harness.waiting import until
from harness.workers import WorkerProcess, nursery_in
from integration.fleet import Fleet
from integration.publishing import ALICE, post_of

LEASE_S = 1.5
REPLACED_WITHIN_S = LEASE_S + 5


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        yield running


@pytest.fixture(scope="module")
def nursery():
    with tempfile.TemporaryDirectory(prefix="fp-") as directory, nursery_in(Path(directory)) as running:
        yield running


class Freeze:
    """Stops the process at `point` and holds what passes there; lists what it sends afterwards."""

    def __init__(self, point: str) -> None:
        self.worker: WorkerProcess
        self.held = asyncio.Event()
        self.let_go = asyncio.Event()
        self.at = 0.0
        self.later: list[str] = []
        self._point = point

    async def __call__(self, name: str, when: str) -> None:
        if self.held.is_set():
            self.later += [name] if when == BEFORE else []
        elif f"{when} {name}" == self._point:
            self.worker.freeze()
            self.at = time.monotonic()
            self.held.set()
            await self.let_go.wait()


POINTS = {
    "before it has its intent stored": f"{AFTER} listRecords",
    "with its intent on the way": f"{BEFORE} queue_intend",
    "with its intent stored": f"{AFTER} queue_intend",
    "with its record on the way": f"{BEFORE} putRecord",
    "with its record committed": f"{AFTER} putRecord",
    "with its success on the way": f"{BEFORE} queue_finish",
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
async def test_it_is_replaced_and_writes_nothing_when_it_wakes(nursery, server, point):
    freeze = Freeze(point)
    async with Fleet(nursery, server.url, LEASE_S=LEASE_S) as fleet:
        await fleet.enqueue(post_of(age_s=3600))
        frozen = freeze.worker = await fleet.gated_worker(freeze)
        await until(freeze.held.is_set)
        fleet.let_pass()
        fleet.worker()
        await fleet.over()
        assert time.monotonic() - freeze.at <= REPLACED_WITHIN_S
        deliveries, commits = fleet.stored.deliveries(), list(fleet.pds.commits)
        assert fleet.stored.states() == {"done": 1}
        assert len(commits) == len(fleet.pds.posts(ALICE)) == 1

        fleet.pds.crossing = freeze
        freeze.let_go.set()
        frozen.thaw()
        await until(lambda: frozen.events("late_write_refused"))
        await until(lambda: fleet.stored.redis.zcard(fleet.stored.key("workers")) == 2)
        assert fleet.stored.deliveries() == deliveries
        assert fleet.pds.commits == commits
        assert "putRecord" not in freeze.later
        assert fleet.stored.faults() == []
        assert await fleet.queue.reconcile() == ("0", [])
