"""The channel between supervisor and child, over a real socketpair."""

from __future__ import annotations

import asyncio
import json
import os
import socket

import pytest

from proxy.control import Beginning, ChildLink, ControlChannel, decode, encode, receive_beginning


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    return ChildLink(ours), ControlChannel(theirs.detach())


async def condition(holds, *, deadline_s=10.0):
    async with asyncio.timeout(deadline_s):
        while not holds():  # noqa: ASYNC110 - there is nothing to hook an event to
            await asyncio.sleep(0)


async def test_a_child_is_told_what_to_do_and_nothing_behind_that_is_lost():
    ours, theirs = socket.socketpair()
    link, control_fd = ChildLink(ours), theirs.detach()
    with open("/dev/null") as null, open("/dev/zero") as zero:  # noqa: ASYNC230, PTH123
        given = {"listen": null.fileno(), "tally": zero.fileno()}
        devices = {name: os.fstat(number).st_rdev for name, number in given.items()}
        link.send_beginning(Beginning(place=3, environ={"NAME": "välue\n"}, fds=given))
    ours.sendall(encode("fleet", ready=3, expected=4))
    told = receive_beginning(control_fd)
    assert told is not None
    assert (told.place, told.environ) == (3, {"NAME": "välue\n"})
    assert {name: os.fstat(number).st_rdev for name, number in told.fds.items()} == devices
    for number in told.fds.values():
        assert not os.get_inheritable(number)
        os.close(number)
    async with ControlChannel(control_fd) as channel:
        await condition(lambda: channel.expected == 4)
        await link.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b'{"v":1,"event":"beg',
        b"garbage\n",
        encode("begin"),
        encode("fleet", ready=1, expected=1),
    ],
)
def test_a_child_whose_supervisor_leaves_or_says_something_else_has_nothing_to_do(sent):
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(sent)
        assert receive_beginning(theirs.fileno()) is None


async def test_a_child_that_has_gone_hears_nothing():
    ours, theirs = socket.socketpair()
    theirs.close()
    link = ChildLink(ours)
    link.send_beginning(Beginning(place=0, environ={}, fds={"tally": 0}))
    assert [event async for event in link.events()] == []
    await link.close()


async def test_ready_reaches_the_supervisor(pair):
    link, channel = pair
    async with channel:
        events = link.events()
        await channel.send_ready()
        assert await anext(events) == "ready"
        await events.aclose()
        await link.close()


async def test_the_child_knows_how_many_are_ready(pair):
    link, channel = pair
    assert not channel.complete  # before it has heard anything
    async with channel:
        events = link.events()
        await channel.send_ready()
        await anext(events)
        link.send_fleet(1, 2)
        await condition(lambda: channel.expected == 2)
        assert not channel.complete
        link.send_fleet(2, 2)
        await condition(lambda: channel.ready == 2)
        assert channel.complete
        await events.aclose()
        await link.close()


async def test_the_child_knows_the_latest_incidents_of_the_store(pair):
    link, channel = pair
    async with channel:
        events = link.events()
        await channel.send_ready()
        await anext(events)
        assert channel.incidents == ()
        link.send_store([f"incident {number}" for number in range(1000)])
        await condition(lambda: channel.incidents)
        assert channel.incidents == ("incident 997", "incident 998", "incident 999")
        long_paths = [f"/{'ü' * 2047}/{number}" for number in range(3)]  # as long as Linux has them
        link.send_store(long_paths)
        await condition(lambda: channel.incidents == tuple(long_paths))
        await events.aclose()
        await link.close()


async def test_the_end_of_the_supervisor_is_noticed(pair):
    link, channel = pair
    async with channel:
        await link.close()
        async with asyncio.timeout(10):
            await channel.wait_closed()


async def test_the_end_of_the_child_is_noticed(pair):
    link, channel = pair
    async with channel:
        await channel.send_ready()
    async with asyncio.timeout(10):
        assert [event async for event in link.events()] == ["ready"]
    link.send_fleet(1, 1)  # nobody hears it, and nothing breaks
    await link.close()


async def test_what_is_not_understood_is_ignored():
    ours, theirs = socket.socketpair()
    with ours:
        async with ControlChannel(theirs.detach()) as channel:
            for line in (
                b"garbage\n",
                b"[]\n",
                b'{"v":1}\n',
                b'{"v":1,"event":"weather"}\n',
                b'{"v":2,"event":"fleet","ready":7,"expected":7}\n',
                b'{"v":1,"event":"fleet","ready":"x","expected":3}\n',
                b'{"v":1,"event":"store","incidents":7}\n',
                b"x" * 200_000 + b"\n",
            ):
                await asyncio.get_running_loop().run_in_executor(None, ours.sendall, line)
            ours.sendall(encode("fleet", ready=3, expected=4))
            await condition(lambda: channel.expected == 4)
            assert channel.ready == 3
            assert channel.incidents == ()


async def test_a_child_that_does_not_read_costs_a_bounded_amount_of_memory(pair):
    link, channel = pair
    events = link.events()
    opened = asyncio.ensure_future(anext(events))
    await condition(lambda: link._writer is not None)
    for _ in range(50_000):
        link.send_fleet(1, 2)
    assert link._writer.transport.get_write_buffer_size() < 100_000
    opened.cancel()
    await asyncio.wait([opened])
    await link.close()
    async with channel:
        await channel.wait_closed()


def test_lines_carry_the_format_number():
    line = encode("fleet", ready=1, expected=2)
    assert line.endswith(b"\n")
    assert json.loads(line) == {"v": 1, "event": "fleet", "ready": 1, "expected": 2}
    assert decode(line) == json.loads(line)
