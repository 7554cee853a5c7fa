"""The short way of hits and the ordinary one cannot be told apart, whatever clients send."""

from __future__ import annotations

import pytest
import pytest_asyncio

from harness.corpus import NOT_PLAIN, captured, head, plain
from harness.proxy import feed
from harness.waiting import until
from harness.ways import both_ways, told_to

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What no head may have that takes the short way.
UNUSUAL = {b"connection", b"content-length", b"upgrade", b"atproto-accept-labelers", b"if-none-match"}
CAPTURED = captured()
PLAIN = plain()
HEAD = head("Host: p", method="HEAD")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def ways(valkey_url):
    """Both."""
    async with both_ways(valkey_url) as ways:
        yield ways


@pytest.mark.parametrize("data", CAPTURED.values(), ids=CAPTURED.keys())
async def test_heads_of_real_clients(ways, data):
    line, *fields = data.split(b"\r\n")[:-2]
    names = {field.partition(b":")[0].lower() for field in fields}
    usual = line.startswith(b"GET ") and UNUSUAL.isdisjoint(names)
    await ways.say(data)  # which may be a question of its own
    await ways.say(data)
    assert await ways.taken(data, data) == (2 if usual else 0)
    assert (await ways.say(data)).statuses[0] in (200, 204, 304)


@pytest.mark.parametrize("data", NOT_PLAIN.values(), ids=NOT_PLAIN.keys())
async def test_what_is_not_plain(ways, data):
    await ways.say(PLAIN, PLAIN)
    for _ in range(2):
        await ways.say(data)
    assert await ways.taken(data) == 0
    await ways.say(PLAIN, data, PLAIN)
    await ways.say(PLAIN + data + PLAIN, PLAIN)


async def test_cut_anywhere(ways):
    await ways.say(PLAIN, PLAIN)
    data = PLAIN + HEAD + PLAIN

    async def script(way):
        peers = [await way.connect() for _ in data]
        for at, peer in enumerate(peers):
            await peer.send(data[:at] or b"\r\n")
        await way.settled()
        before = [peer.heard for peer in peers]
        for at, peer in enumerate(peers):
            await peer.send(data[at:])
        await way.settled()
        return before, await told_to(*peers)

    _, heard = await ways.same(script)
    assert {(tuple(one.statuses), one.ended) for one in heard} == {((200, 200, 200), False)}


@pytest.mark.parametrize("end", ["end_sending", "leave"])
async def test_who_ends_anywhere(ways, end):
    """Having sent so many bytes, and read what came of them."""
    await ways.say(PLAIN, PLAIN)
    data = PLAIN + HEAD

    async def script(way):
        peers = [await way.connect() for _ in data]
        for number, peer in enumerate(peers):
            await peer.send(data[:number])
            await way.settled()
            await getattr(peer, end)()
        await way.settled()
        return await told_to(*peers)

    heard = await ways.same(script)
    assert {len(one.statuses) for one in heard} == {0, 1}


@pytest.mark.parametrize("count", [1, 2])
async def test_who_ends_at_once(ways, count):
    """With the request, before anything has been read of it."""
    await ways.say(PLAIN, PLAIN)

    async def script(way):
        peer = await way.connect()
        peer.write(PLAIN * count)
        await peer.end_sending()
        await way.settled()
        return await told_to(peer)

    await ways.same(script)


async def test_who_reads_late(ways):
    """Far more than the kernel holds for a connection is answered, and waits for its reader."""
    await ways.say(PLAIN, PLAIN)
    count = 1000

    async def script(way):
        peer = await way.connect()
        peer.stop_reading()
        for number in range(count):
            await peer.send((PLAIN, HEAD, PLAIN + PLAIN)[number % 3])
        peer.read_on()
        await until(lambda: len(peer.heard.statuses) == count + count // 3)
        await way.settled()
        return await told_to(peer)

    await ways.same(script)


async def test_what_was_purged(ways):
    target = feed("purged.test")
    asked = plain(target)

    async def script(way):
        before = await way.exchange(asked, asked, asked)
        await way.purge(target)
        return before, await way.exchange(asked, asked)

    before, after = await ways.same(script)
    assert before.data.count(b"uri-miss") == after.data.count(b"uri-miss") == 1


async def test_one_connection_too_many(valkey_url, monkeypatch):
    monkeypatch.setattr("proxy.web_server.MAX_CONNECTIONS", 2)
    monkeypatch.setattr("proxy.web_server._FEWEST_CONNECTIONS", 2)

    async def script(way):
        peers = [await way.connect() for _ in range(4)]
        for _ in range(3):
            for peer in peers:
                await peer.send(PLAIN)
                await way.settled()
        return await told_to(*peers)

    async with both_ways(valkey_url) as ways:
        heard = await ways.same(script)
    assert [one.statuses for one in heard] == [[200] * 3] * 2 + [[503]] * 2
