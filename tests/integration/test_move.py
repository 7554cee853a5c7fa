"""The queue carried to another store: the same there, wherever that was interrupted; or nothing changed."""

from __future__ import annotations

import itertools
import uuid

import pytest
import redis
import redis.asyncio
from pydantic import SecretStr

from harness.queue import QueueOfTest, queue_on, submission
from harness.redis_servers import redis_server
from proxy.clock import SystemClock
from proxy.errors import OperationalError, StoreRefused
from proxy.ops.move import call_off, move
from proxy.store.residence import Place

LEASE_S = 10.0


@pytest.fixture(scope="module", params=[("valkey-9", "redis-6.2"), ("redis-6.2", "valkey-9")], ids="->".join)
def servers(request):
    with redis_server(request.param[0]) as one, redis_server(request.param[1]) as other:
        yield one, other


@pytest.fixture
def sides(servers):
    """The same namespace on both."""
    namespace = f"test-{uuid.uuid4().hex[:12]}"
    own = [QueueOfTest(server.url, namespace) for server in servers]
    yield own
    for side in own:
        side.delete_all()
        side.close()


def place(side, tmp_path):
    return Place(url=SecretStr(side.url), data_dir=tmp_path, memory_mb=16)


def nothing(_total, _more):
    """Nobody watches."""


async def carry(one, other, tmp_path, *, progress=nothing):
    return await move(
        place(one, tmp_path),
        place(other, tmp_path),
        SystemClock(),
        namespace=one.namespace,
        lease_s=LEASE_S,
        progress=progress,
    )


def contents(side):
    """All that is there, so that it can be compared."""
    client = redis.Redis.from_url(side.url)
    found = {}
    for key in client.scan_iter(f"{side.namespace}:*", count=1000):
        match client.type(key):
            case b"hash":
                found[key] = client.hgetall(key)
            case b"zset":
                found[key] = dict(client.zrange(key, 0, -1, withscores=True))
            case b"set":
                found[key] = client.smembers(key)
            case b"list":
                found[key] = client.lrange(key, 0, -1)
            case b"stream":
                held = [
                    (group["name"], group["last-delivered-id"], client.xpending(key, group["name"]))
                    for group in client.xinfo_groups(key)
                ]
                found[key] = client.xrange(key), client.xinfo_stream(key)["last-generated-id"], held
            case _:
                found[key] = client.get(key)
    client.close()
    return found


async def fill(side, posts=5):
    """Posts that wait, one that a worker holds whose host has died since, one that is done."""
    async with queue_on(side.url, side.namespace) as queue:
        for number in range(posts):
            await queue.enqueue(submission(str(number), accounts={"main": "did:plc:main"}))
        await queue.enqueue(submission("other", accounts={"side": "did:plc:side"}))
        await queue.introduce("dead", {"main": "fp", "side": "fp"})
        (first, _) = await queue.take("dead", 10)
        await queue.intend(first, b'{"text":"x"}', "cid1", "3kabc", did="did:plc:x", generation=0)
        await queue.finish(first, "at://did:plc:x/p/3kabc", "cid1")
        await queue.take("dead", 10)
    side.silence_worker("dead")
    side.redis.hset(side.key("pins"), "alice.test", "did:plc:alice")


async def test_it_is_all_there_and_goes_on_there(sides, tmp_path):
    one, other = sides
    await fill(one)
    before = contents(one)
    told = []
    moved = await carry(one, other, tmp_path, progress=lambda total, more: told.append((total, more)))
    assert contents(other) == before
    assert contents(one) == {}
    assert (moved.keys, moved.copied, moved.waiting) == (len(before), len(before), 5)
    assert (told[0], sum(more for _, more in told)) == ((len(before), 0), len(before))
    assert other.faults() == []
    async with queue_on(other.url, other.namespace) as queue:
        await queue.reap()
        await queue.introduce("w2", {"main": "fp", "side": "fp"})
        ended = []
        while taken := await queue.take("w2", 10):
            for leased in taken:
                await queue.finish(leased, f"at://did:plc:x/p/{leased.id}", "cid")
                ended.append(leased.id)
        assert len(ended) == len(set(ended)) == 5
        assert other.states() == {"done": 6} or not other.states()


async def test_large_values_of_each_type_are_the_same(sides, tmp_path):
    one, other = sides
    many = [f"{number}\0\xff" for number in range(1100)]
    one.redis.hset(one.key("hash"), mapping={name: name * 3 for name in many})
    one.redis.zadd(one.key("zset"), {name: number / 7 for number, name in enumerate(many)})
    one.redis.zadd(one.key("far"), {"a": "-inf", "b": "+inf", "c": 2**53 - 1, "d": 1e300})
    one.redis.rpush(one.key("list"), *many)
    one.redis.sadd(one.key("set"), *many)
    one.redis.set(one.key("text"), bytes(range(256)))
    with one.redis.pipeline(transaction=False) as pipe:
        for name in many:
            pipe.xadd(one.key("stream"), {"name": name, "more": ""})
        pipe.execute()
    one.redis.xgroup_create(one.key("stream"), "group", "0")
    one.redis.xreadgroup("group", "first", {one.key("stream"): ">"}, count=700)
    one.redis.xreadgroup("group", "second", {one.key("stream"): ">"}, count=100)
    one.redis.xgroup_create(one.key("empty"), "group", "$", mkstream=True)
    before = contents(one)
    await carry(one, other, tmp_path)
    assert contents(other) == before
    again = await carry(other, one, tmp_path)
    assert contents(one) == before
    assert again.copied == len(before)


class Cut(Exception):
    """Where a test interrupts."""


@pytest.fixture
def cut_after(monkeypatch):
    """Every connection fails after so many commands, until told otherwise."""
    execute = redis.asyncio.Redis.execute_command
    left = {"commands": None}

    async def counted(self, *args, **options):
        if left["commands"] is not None:
            if left["commands"] == 0:
                raise redis.ConnectionError("cut")
            left["commands"] -= 1
        return await execute(self, *args, **options)

    monkeypatch.setattr(redis.asyncio.Redis, "execute_command", counted)

    def cut(commands):
        left["commands"] = commands

    return cut


async def refuses(side):
    """Whether the queue does nothing there."""
    async with queue_on(side.url, side.namespace) as queue:
        try:
            await queue.read("job_of_nobody")
        except StoreRefused as error:
            assert "FROZEN" in str(error)  # noqa: PT017
            return True
    return False


async def test_wherever_it_is_interrupted_it_goes_on(sides, tmp_path, cut_after):
    one, other = sides
    for step in itertools.count(start=2, step=41):
        await fill(one, posts=2)
        before = contents(one)
        cut_after(step)
        try:
            await carry(one, other, tmp_path)
        except OperationalError as error:
            assert "cut" in str(error)  # noqa: PT017
            interrupted = True
        else:
            interrupted = False
        cut_after(None)
        at_work = [side for side in sides if not await refuses(side)]
        mark = f"{one.key('move')}".encode()
        # Whoever is at work now has everything, and nobody else is.
        for side in at_work:
            assert contents(side) in (before, {})
        assert [contents(side) for side in at_work].count(before) <= 1
        await carry(one, other, tmp_path)
        assert contents(other) == before
        assert contents(one) == {}
        assert mark not in contents(other)
        other.delete_all()
        if not interrupted:
            assert step > 100
            return


async def test_a_store_that_has_something_is_no_target(sides, tmp_path):
    one, other = sides
    await fill(one)
    before = contents(one)
    async with queue_on(other.url, other.namespace) as queue:
        await queue.enqueue(submission("theirs"))
    theirs = contents(other)
    with pytest.raises(OperationalError, match=r"is not empty: there are \d+ keys such as test-.*two queues"):
        await carry(one, other, tmp_path)
    assert contents(one) == before
    assert contents(other) == theirs


async def test_what_idle_processes_have_left_there_does_not_count(sides, tmp_path):
    one, other = sides
    await fill(one)
    before = contents(one)
    async with queue_on(other.url, other.namespace) as queue:
        await queue.introduce("idle", {"main": "fp"})
        await queue.take("idle", 1)
        await queue.sweep()
    other.silence_worker("idle")
    await carry(one, other, tmp_path)
    assert contents(other) == before


@pytest.mark.parametrize("where", [0, 1])
async def test_a_worker_at_work_on_either_side_is_named(sides, tmp_path, where):
    one, other = sides
    await fill(one)
    async with queue_on(sides[where].url, one.namespace) as queue:
        await queue.introduce("busy", {"main": "fp"})
    before = contents(one), contents(other)
    with pytest.raises(
        OperationalError, match=r"the worker busy was at work within the last 10 s; stop every"
    ):
        await carry(one, other, tmp_path)
    assert (contents(one), contents(other)) == before


@pytest.mark.parametrize("channel", ["feed:0123abcd:news", "{q}:news"])
async def test_a_connected_serve_is_noticed(sides, tmp_path, channel):
    one, other = sides
    await fill(one)
    with other.redis.pubsub() as listening:
        listening.subscribe(f"{one.namespace}:{channel}")
        listening.get_message(timeout=10)
        with pytest.raises(OperationalError, match=r"a serve of this namespace is connected"):
            await carry(one, other, tmp_path)
    assert contents(other) == {}


async def test_a_move_to_one_store_may_be_finished_in_another_or_called_off(sides, tmp_path, cut_after):
    one, other = sides
    await fill(one)
    before = contents(one)
    cut_after(40)
    with pytest.raises(OperationalError, match="cut"):
        await carry(one, other, tmp_path)
    cut_after(None)
    assert await refuses(one)
    assert await refuses(other)
    with pytest.raises(OperationalError, match=r"is the target of a move from"):
        await carry(other, one, tmp_path)
    with pytest.raises(OperationalError, match=r"is half done: finish that first"):
        await call_off(place(other, tmp_path), SystemClock(), namespace=one.namespace)
    other.delete_all()  # the server was lost, and a new one is there
    await call_off(place(one, tmp_path), SystemClock(), namespace=one.namespace)
    assert contents(one) == before
    assert not await refuses(one)
    await carry(one, other, tmp_path)
    assert contents(other) == before


async def test_from_one_place_to_the_same_and_of_nothing(sides, tmp_path):
    one, other = sides
    with pytest.raises(OperationalError, match=r"is both the source and the target"):
        await carry(one, one, tmp_path)
    assert (await carry(one, other, tmp_path)).keys == 0
    assert contents(other) == contents(one) == {}


async def test_a_store_that_is_not_there_is_named(sides, tmp_path):
    gone = Place(url=SecretStr(f"unix://:secret@{tmp_path}/gone.sock"), data_dir=tmp_path, memory_mb=16)
    with pytest.raises(OperationalError, match=r"gone\.sock.* does not answer") as raised:
        await move(
            gone,
            place(sides[0], tmp_path),
            SystemClock(),
            namespace=sides[0].namespace,
            lease_s=LEASE_S,
            progress=nothing,
        )
    assert "secret" not in str(raised.value)
