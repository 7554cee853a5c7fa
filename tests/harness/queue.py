"""The queue of a test: its own namespace, a look at what is stored, and time that passes when told to."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import redis
from pydantic import SecretStr

from proxy.clock import SystemClock
from proxy.store.queue_store import QueueStore, connect_queue
from proxy.store.scripts import Script
from proxy.syndication.desk import Submission
from proxy.syndication.job import FORMAT, Status, job_status, shown_status
from proxy.syndication.queue import JobQueue, QueuePolicy, Stream
from proxy.syndication.queue_answers import Leased, Settled

DAY_S = 86400
POLICY = QueuePolicy(
    lease_s=10,
    retry_delays_s=(60, 120, 300),
    breaker_threshold=3,
    breaker_cooldown_s=900,
    max_post_age_s=7 * DAY_S,
    done_retention_s=7 * DAY_S,
    dead_retention_s=30 * DAY_S,
)
_INSTANT_SETS = ("live", "delayed", "dead", "done", "idem", "gates", "orphans", "gone")
_SETTLING = ("queue_finish", "queue_retry", "queue_fail", "queue_release", "queue_enrich", "queue_notify")
_KEPT = {"failed": "dead", "disabled": "dead", "pending": "live", "retrying": "live"}
_LIVE = ("ready", "active", "delayed")
# As in store/lua/queue_keep.lua.
_JOB_FIELDS = (
    *("site", "post", "status", "created_at_ms", "finished_at_ms", "first_published_at_ms", "revision"),
    *("group", "edition", "generation", "priority", "callback"),
)
_DELIVERY_FIELDS = ("account", "state", "did", "rkey", "cid", "last", "attempts", "failures")


def submission(post: str = "1", **changes: Any) -> Submission:
    """A post as intake would hand it in: wanted, published long ago, for the account main."""
    payload = json.dumps(
        {
            "id": post,
            "published_at": "2026-11-22T09:00:00.000Z",
            "title": f"Title of {post}",
            "url": f"https://blog.example/{post}",
        }
    )
    accounts = changes.pop("accounts", ("main",))
    given = {
        "job": f"job_{uuid.uuid4().hex}",
        "site": "blog",
        "post": post,
        "revision": None,
        "payload": payload,
        "url_hash": f"{post:0>64}",
        "published_at_ms": 1_763_802_000_000,
        "group": "",
        "priority": "normal",
        "explicit_key": False,
        "wanted": True,
        "skip": "",
        "unpublish": "keep",
        "posts_per_hour": 1000,
        "max_waiting": 1000,
        "enrich": False,
        "callback_url": "",
        **changes,
    }
    words = f"{given['payload']}{given['revision']}{given['wanted']}"
    given.setdefault("payload_hash", f"hash of {words}")
    given.setdefault("key", f"{uuid.uuid5(uuid.NAMESPACE_OID, given['post'] + words).hex}")
    return Submission(accounts=dict.fromkeys(accounts, ""), **given)


class TwiceStore:
    """Sends each script a second time with the same arguments, as when an answer was lost.

    The caller gets the second answer; `differing` collects names of scripts whose answers were not the same.
    """

    def __init__(self, store: QueueStore) -> None:
        self._store = store
        self.differing: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def run(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        first = await self._store.run(script, key, args)
        second = await self._store.run(script, key, args)
        # Who finds nothing may have ended what had expired, and made room for what the next one finds.
        in_vain = script.name == "queue_take" and first == [b"leases"]
        if not in_vain and _how(script, first) != _how(script, second):
            self.differing.append(f"{script.name}: {first!r} then {second!r}")
        return second


def _how(script: Script, answer: Any) -> Any:
    """The part of an answer that must be the same when the script is sent again."""
    if script.name in _SETTLING:
        following = answer[1] and dict(zip(answer[1][1][::2], answer[1][1][1::2], strict=True))
        return answer[0] == b"lost", following and (answer[1][0], following[b"token"])
    if script.name == "queue_enqueue":
        return [_read(part) for number, part in enumerate(answer) if number != 1]
    # What housekeeping has done is not there to be done again, and how it stands tells of the time.
    differ = ("queue_promote", "queue_reap", "queue_sweep", "queue_reconcile", "queue_dead")
    return None if script.name in (*differ, "queue_standing", "queue_accounts") else _read(answer)


def _read(answer: Any) -> Any:
    """JSON has no order."""
    if isinstance(answer, list):
        return [_read(part) for part in answer]
    return json.loads(answer) if isinstance(answer, bytes) and answer[:1] == b"{" else answer


class NothingFound:
    """Errands for a worker that looks at no page: posts go out as if there were nothing to be found."""

    stream = Stream.ERRANDS

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def host(self, _leased: Leased) -> str:
        return ""

    async def is_off(self, _leased: Leased) -> bool:
        return False

    async def attempt(self, leased: Leased, _ends_at: Callable[[], float]) -> str:
        assert "::enrich:" in leased.id
        return "nobody looked"

    async def settle(self, leased: Leased, outcome: str | None, following: str) -> Settled:
        return await self._queue.not_enriched(leased, outcome or "", again_in_s=None, following=following)


async def find_nothing(queue: JobQueue, worker: str) -> None:
    """Do the errands that are to be done before posts go out."""
    errands = NothingFound(queue)
    while leased := await queue.take(worker, 100, stream=Stream.ERRANDS):
        for one in leased:
            await errands.settle(one, await errands.attempt(one, lambda: 0.0), "")


class QueueOfTest:
    """What a test sees of the queue behind its back."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self.namespace = namespace
        self.prefix = f"{namespace}:{{q}}:"
        self.redis = redis.Redis.from_url(url, decode_responses=True)

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def keys(self, pattern: str = "*") -> list[str]:
        return [key.removeprefix(self.prefix) for key in self.redis.scan_iter(self.key(pattern), count=1000)]

    def hash(self, name: str) -> dict[str, str]:
        return self.redis.hgetall(self.key(name))

    def scores(self, name: str) -> dict[str, float]:
        return dict(self.redis.zrange(self.key(name), 0, -1, withscores=True))

    def deliveries(self) -> dict[str, dict[str, str]]:
        """All deliveries by id."""
        names = self.keys("d:*")
        pipeline = self.redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(self.key(name))
        live = dict(zip(names, pipeline.execute(), strict=True))
        # What was folded meanwhile is found there.
        live = {name: fields for name, fields in live.items() if "::" not in name}
        folded = [delivery for _, deliveries in self.folded().values() for delivery in deliveries]
        return {name.removeprefix("d:"): fields for name, fields in live.items() if fields} | {
            f"{delivery['job']}:{delivery['account']}": delivery for delivery in folded
        }

    def errands(self) -> dict[str, dict[str, str]]:
        """Steps of chains that are no deliveries, by id."""
        return {name.removeprefix("d:"): self.hash(name) for name in self.keys("d:*::*")}

    def folded(self) -> dict[str, tuple[dict[str, str], list[dict[str, str]]]]:
        """Jobs that are over, and their deliveries, as far as they are kept."""
        kept = {job: json.loads(text) for job, text in self.hash("over").items()}
        return {
            job: (
                _given(_JOB_FIELDS, fields),
                [{"job": job, **_given(_DELIVERY_FIELDS, values)} for values in deliveries],
            )
            for job, (_, fields, *deliveries) in kept.items()
        }

    def tombstones(self) -> list[str]:
        """Of which posts, as site:id, only the tombstone is left."""
        return [name for name, words in self.hash("posts").items() if not words.endswith(" -")]

    def states(self) -> Counter[str]:
        return Counter(fields["state"] for fields in self.deliveries().values())

    def let_time_pass(self, seconds: float) -> None:
        """Every stored instant lies so much further back; heartbeats stay, as workers go on beating."""
        pipeline = self.redis.pipeline(transaction=False)
        for name in (*_INSTANT_SETS, *self.keys("dead:*")):
            for member in self.scores(name):
                pipeline.zincrby(self.key(name), -seconds * 1000, member)
        for name, words in self.hash("posts").items():
            *others, since = words.split()
            if since != "-":
                since = str(int(since) - round(seconds / DAY_S))
                pipeline.hset(self.key("posts"), name, " ".join((*others, since)))
        pipeline.execute()
        self._shift(self.keys("d:*"), ("due_at_ms", "expires_at_ms"), seconds)
        self._shift(self.keys("account:*"), ("gate_until_ms", "unknown_since_ms"), seconds)
        for name in self.keys("quota:*"):
            times = [float(at) - seconds * 1000 for at in self.redis.lrange(self.key(name), 0, -1)]
            self.redis.delete(self.key(name))
            self.redis.rpush(self.key(name), *(f"{at:.0f}" for at in times))

    def silence_worker(self, worker: str) -> None:
        """As if its last heartbeat had been a minute ago."""
        self.redis.zincrby(self.key("workers"), -60_000, worker)

    def _shift(self, names: Sequence[str], fields: Sequence[str], seconds: float) -> None:
        pipeline = self.redis.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(self.key(name), *fields)
        for name, values in zip(names, pipeline.execute(), strict=True):
            for field, value in zip(fields, values, strict=True):
                if value not in (None, "-1"):
                    pipeline.hincrby(self.key(name), field, -round(seconds * 1000))
        pipeline.execute()

    def faults(self) -> list[str]:
        """Each way in which what is stored contradicts itself, found without the queue's own scripts."""
        deliveries, errands = self.deliveries(), self.errands()
        accounts = {name.removeprefix("account:"): self.hash(name) for name in self.keys("account:*")}
        return [
            *self._misplaced(deliveries | errands, accounts),
            *self._bells_amiss(accounts),
            *self._jobs_amiss(deliveries),
            *self._errands_amiss(errands),
            *(f"{name} goes by itself" for name in self.keys() if self.redis.pttl(self.key(name)) != -1),
        ]

    def _misplaced(self, deliveries, accounts):
        backlogs = {name.removeprefix("backlog:"): set(self.scores(name)) for name in self.keys("backlog:*")}
        sets = {name: set(self.scores(name)) for name in ("live", "delayed", "dead")}
        for delivery, fields in deliveries.items():
            state, account = fields["state"], fields["account"]
            places = {
                "ready": delivery in backlogs.get(account, ()),
                "delayed": delivery in sets["delayed"],
                "active": accounts.get(account, {}).get("active") == delivery,
                "dead": delivery in sets["dead"],
            }
            if "::" in delivery:
                del places["dead"]  # that is where failed posts are
            if {place for place, there in places.items() if there} != {state} & set(places):
                yield f"{delivery} is {state} and in {places}"
            if (delivery in sets["live"]) != (state in _LIVE):
                yield f"{delivery} is {state}, live: {delivery in sets['live']}"
        of_sites = {member for name in self.keys("dead:*") for member in self.scores(name)}
        yield from (
            f"{one} is dead and of no site, or the other way round" for one in of_sites ^ sets["dead"]
        )
        for name, members in (*sets.items(), *backlogs.items()):
            yield from (f"{member} in {name} is unknown" for member in members - set(deliveries))

    def _bells_amiss(self, accounts):
        entries = {
            (stream, entry): fields["a"]
            for stream in ("bells", "errands")
            for entry, fields in self.redis.xrange(self.key(stream))
        }
        for account, fields in accounts.items():
            bell, stream = fields.get("bell"), "errands" if account.startswith(":") else "bells"
            if bell and entries.pop((stream, bell), None) != account:
                yield f"the bell of {account} is not in the stream"
            paused = self.hash("control").get("paused")
            closed = paused or fields.get("paused") or fields.get("gate_until_ms")
            resting = account in self.scores("orphans")
            ready = self.redis.exists(self.key(f"backlog:{account}"))
            if ready and not bell and not closed and not resting and not self._is_held(account, fields):
                yield f"{account} has work and no bell"
            if bell and not fields.get("active") and (closed or not ready) and not paused:
                yield f"{account} rings for nothing"
            if fields.get("active") and not bell:
                yield f"{account} is active without a bell"
        yield from (f"entry {entry} of {account} is no bell" for entry, account in entries.items())

    def _is_held(self, account, fields):
        """Whether all that is ready waits for errands, or behind what does."""
        waiting = set()
        for delivery in self.redis.zrange(self.key(f"backlog:{account}"), 0, -1):
            stored = self.hash(f"d:{delivery}")
            running = self.hash(f"job:{stored['job']}").get("enrich") == "running"
            if stored["action"] == "post" and not stored.get("cid") and running:
                waiting.add(stored["site"])
            if stored["site"] not in waiting:
                return False
        return bool(fields.get("held"))

    def _errands_amiss(self, errands):
        enriching = {fields["job"] for name, fields in errands.items() if "::enrich:" in name}
        for name in self.keys("job:*"):
            job = self.hash(name)
            running, there = job.get("enrich") == "running", job["id"] in enriching
            if running != there:
                yield f"{job['id']} is enriched: {running}, and there is an errand: {there}"
            enriching.discard(job["id"])
        yield from (f"{job} is enriched and not live" for job in enriching)
        jobs = [self.hash(name) for name in self.keys("job:*")]
        words = {job["id"]: job.get("callback", "") for job in jobs}
        words |= {job: fields.get("callback", "") for job, (fields, _) in self.folded().items()}
        notifying = {fields["job"]: fields for name, fields in errands.items() if "::notify:" in name}
        for job, text in words.items():
            number, state, *_ = (*text.split(), "", "")
            fields = notifying.pop(job, {})
            kept = {"dead": "dead", None: ""}.get(fields.get("state"), "live")
            if kept != _KEPT.get(state, "") or (kept and fields["number"] != number):
                yield f"the callback of {job} is {text!r}, its errand {fields}"
        yield from (f"{job} is told of and unknown" for job in notifying)

    def _jobs_amiss(self, deliveries):
        waiting: Counter[str] = Counter()
        done = set(self.scores("done"))
        folded = self.folded()
        yield from (f"{job} is twice there" for job in folded if self.redis.exists(self.key(f"job:{job}")))
        for job, (fields, own) in folded.items():
            shown = [shown_status(fields["state"], 0) for fields in own]
            if job not in done or fields["status"] != job_status(shown):
                yield f"{job} is {shown} and says {fields['status']}; among the done: {job in done}"
        for name in self.keys("job:*"):
            job = self.hash(name)
            own = [deliveries[f"{job['id']}:{account}"] for account in job["accounts"].split(",")]
            live = sum(fields["state"] in _LIVE for fields in own)
            shown = [shown_status(fields["state"], int(fields.get("failures", 0))) for fields in own]
            if int(job["open"]) != live:
                yield f"{job['id']} has {live} live deliveries and says {job['open']}"
            if job["status"] != job_status(Status(status) for status in shown):
                yield f"{job['id']} is {shown} and says {job['status']}"
            if job["id"] in done or (not live and all(fields["state"] != "dead" for fields in own)):
                yield f"{job['id']} is over and not folded"
            waiting[job["site"]] += live > 0
        for name in self.keys("site:*"):
            site = name.removeprefix("site:")
            if int(self.hash(name).get("waiting", 0)) != waiting[site]:
                yield f"{waiting[site]} jobs of {site} wait, and it says {self.hash(name)}"

    def delete_all(self) -> None:
        for name in self.keys():
            self.redis.delete(self.key(name))

    def close(self) -> None:
        self.delete_all()
        self.redis.close()


def _given(names: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    return {name: value for name, value in zip(names, values, strict=False) if value}


@contextlib.contextmanager
def sound_queue(url: str) -> Iterator[QueueOfTest]:
    """What a queue of the test's own stores at `url`; at the end nothing of it may contradict itself."""
    own = QueueOfTest(url, f"test-{uuid.uuid4().hex[:8]}")
    yield own
    faults = own.faults()
    own.close()
    assert not faults


@contextlib.asynccontextmanager
async def queue_on(
    url: str, namespace: str, policy: QueuePolicy = POLICY, *, twice: bool = False, readable: int = FORMAT
) -> AsyncIterator[JobQueue]:
    """A queue; with `twice`, each script is sent twice, and a differing second answer is an error."""
    clock = SystemClock()
    store = connect_queue(SecretStr(url), clock)
    sender: Any = TwiceStore(store) if twice else store
    queue = JobQueue(sender, clock, policy, namespace=namespace, readable=readable)
    try:
        yield queue
    finally:
        await queue.aclose()
        await store.aclose()
    assert not twice or not sender.differing, sender.differing
