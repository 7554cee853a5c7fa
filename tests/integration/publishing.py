"""Publishers on several hosts around one store, before PDSs of our own."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from pydantic import SecretStr

from harness.pds import POST, Call, Directory, PdsServer
from proxy.bluesky.identity import Identities
from proxy.bluesky.pds import Pds
from proxy.bluesky.pins import Login, Pins
from proxy.bluesky.sessions import SessionPolicy, Sessions
from proxy.bluesky.transport import DeadlineTransport
from proxy.bluesky.wire import Wire
from proxy.clock import SystemClock
from proxy.errors import LeaseLost, StoreUnavailable
from proxy.resilience.limiter import Bucket, Rate
from proxy.resilience.pace import LocalPace
from proxy.store.queue_store import connect_queue
from proxy.syndication.accounts import Accounts, load_accounts
from proxy.syndication.enriching import Enricher
from proxy.syndication.enrichment import Enrichment, enrichment_of
from proxy.syndication.job import Action, Delivery, DeliveryState, Job
from proxy.syndication.post import Post, parse_post
from proxy.syndication.publisher import Publisher, login_of
from proxy.syndication.rkey import record_key
from proxy.tenants import Tenants

ALICE, BOB = "did:plc:alice", "did:plc:bob"
PASSWORD = "a password of alice, never to be seen"
UNHURRIED = Rate(per_s=100_000, burst=1000)
# Loading the certificates of the world takes longer than most tests.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
# Tests log in as often as they like, unless the pause is what they are about.
NO_PAUSE = SessionPolicy(login_pause_s=0, longest_login_pause_s=0)

# Nobody waits longer for a session here.
SOON = 10.0


class Switch:
    """A store that can be taken away, and whose answers can be lost after the script ran."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.away = False
        self.lost: set[str] = set()
        self.ran: list[str] = []
        self.fails_at = -1  # the call with this number fails, before it runs or after
        self.fails_after = False
        self.calls = 0

    async def run(self, script, key, args):
        number, self.calls = self.calls, self.calls + 1
        if self.away or (number == self.fails_at and not self.fails_after):
            raise StoreUnavailable("the test took it away")
        answer = await self._store.run(script, key, args)
        self.ran.append(script.name)
        if script.name in self.lost or number == self.fails_at:
            raise StoreUnavailable("the test lost the answer")
        return answer


class LeaseOfTest:
    """A lease that remembers what was intended. `on_intend` may raise, or look around."""

    def __init__(self, delivery: Delivery, job: Job, *, clock: SystemClock, for_s: float = 30.0) -> None:
        self.delivery = delivery
        self.job = job
        self.intents: list[dict[str, Any]] = []
        self.ends_at = clock.steady() + for_s
        self.lost = False
        self.over = False
        self.on_intend = lambda: None

    async def intend(self, record, cid, rkey, *, did="", generation=None) -> None:
        self.on_intend()
        if self.lost:
            raise LeaseLost("the test took it")
        intent = {"intent": record, "cid": cid, "rkey": rkey, "did": did, "generation": generation}
        self.intents.append(intent)
        self.delivery = replace(self.delivery, **intent)

    def expired(self) -> bool:
        return self.over


@dataclass
class Host:
    """What one process has."""

    publish: Publisher
    sessions: Sessions
    pins: Pins
    store: Switch
    accounts: Accounts
    clock: SystemClock = field(default_factory=SystemClock)

    def configure(self, accounts: Accounts) -> None:
        """feedproxy.toml or a password has changed, and SIGHUP came."""
        self.accounts = accounts

    def login(self, name: str = "main") -> Login:
        return login_of(self.accounts, name)

    async def attempt(self, delivery, post, job, **lease_options):
        lease = LeaseOfTest(delivery, job, clock=self.clock, **lease_options)
        return await self.publish(delivery, post, lease), lease


class World:
    """A directory, PDSs, a store, and hosts."""

    def __init__(
        self, directory: Directory | None, pds: PdsServer | None, other: PdsServer | None, store
    ) -> None:
        self.directory = directory
        self.pds = pds
        self.other = other
        self.store = store
        self.plc_url = self.resolver_url = directory.url if directory else ""
        self.prefix = f"{store.namespace}:{{q}}:"
        self.clock = SystemClock()
        self._exits = contextlib.AsyncExitStack()

    async def close(self) -> None:
        await self._exits.aclose()

    def accounts(self, *, password: str = PASSWORD, identifier: str = "alice.test", **more: Any) -> Accounts:
        tenants = Tenants.model_validate(
            {
                "accounts": [
                    {"name": "main", "identifier": identifier, "password_env": "MAIN", **more},
                    {"name": "bob", "identifier": BOB, "password_env": "BOB"},
                ],
                "sites": [
                    {
                        "name": "blog",
                        "token_env": "TOKEN",
                        "accounts": ["main"],
                        "langs": ["en"],
                        "template": "{title}\n\n{excerpt}\n\n{url}",
                    }
                ],
            }
        )
        return load_accounts(tenants, {"MAIN": password, "BOB": PASSWORD, "TOKEN": "t" * 20})

    def host(
        self,
        *,
        enricher: Enricher | None = None,
        accounts: Accounts | None = None,
        policy: SessionPolicy = NO_PAUSE,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> Host:
        """A process of its own, with its own connections and memory."""
        clock = self.clock
        shared = connect_queue(SecretStr(self.store.url), clock)
        self._exits.push_async_callback(shared.aclose)
        store = Switch(shared)
        transport = transport or DeadlineTransport(clock, max_connections=32, ssl_context=_NO_TLS)
        client = httpx.AsyncClient(transport=transport, trust_env=False)
        self._exits.push_async_callback(client.aclose)
        wire = Wire(client, clock)
        pds = Pds(wire, LocalPaceWithTokens(UNHURRIED, clock), clock)
        identities = Identities(wire, clock, plc_url=self.plc_url, resolver_url=self.resolver_url)
        pins = Pins(store, identities, prefix=self.prefix)
        sessions = Sessions(store, pds, identities, pins, clock, prefix=self.prefix, policy=policy)
        host = Host(None, sessions, pins, store, accounts or self.accounts())
        host.publish = Publisher(
            sessions, pds, identities, enricher or Unread(), lambda: host.accounts, clock
        )
        return host

    @property
    def logins(self) -> int:
        return sum(len(server.calls("createSession")) for server in (self.pds, self.other))

    @property
    def refreshes(self) -> int:
        return sum(len(server.calls("refreshSession")) for server in (self.pds, self.other))


class Unread(Enricher):
    """Looks at no page: posts have the card that their CMS sends. What pages give is tried elsewhere."""

    def __init__(self) -> None:
        pass

    async def enrich(self, post, site, deadline_at) -> Enrichment:
        return enrichment_of(post)


class LocalPaceWithTokens(LocalPace):
    """Hosts not asked before are there with tokens: tests do not wait."""

    async def take(self, host: str, account: str) -> float:
        self._buckets.setdefault(host, self._full())
        return await super().take(host, account)

    def _full(self):
        return Bucket(float(self._rate.burst), self._clock.steady())


def post_of(number: int = 1, *, age_s: float = 0.0, **fields: Any) -> Post:
    """A post first published `age_s` ago."""
    published_at = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=age_s)
    document = {
        "id": str(number),
        "url": f"https://blog.example/{number}",
        "title": f"Post {number}",
        "published_at": published_at.isoformat(),
        **fields,
    }
    return parse_post(document, now=datetime.now(UTC).timestamp())[0]


def delivery_of(post: Post, account: str = "main", *, action: Action = Action.POST) -> tuple[Delivery, Job]:
    """The delivery of `post` as the queue would hand it out first."""
    job = Job(
        id="job_1",
        site="blog",
        post=post.id,
        accounts=(account,),
        payload=post.canonical(),
        first_published_at_ms=post.published_at_ms,
    )
    delivery = Delivery(job=job.id, account=account, site="blog", state=DeliveryState.ACTIVE, action=action)
    return delivery, job


async def publish(host: Host, post: Post, account: str = "main"):
    """One attempt at a post never tried before."""
    delivery, job = delivery_of(post, account)
    outcome, _ = await host.attempt(delivery, post, job)
    return outcome


def secrets_of(world: World) -> set[str]:
    """What must be seen nowhere: the password, and every token that a PDS has handed out or was shown."""
    servers = (world.pds, world.other)
    accounts = [account for server in servers for account in server.accounts.values()]
    tokens = {token for a in accounts for token in (a.access, a.refresh, a.old_refresh)}
    shown = {call.token for server in servers for call in server.requests}
    return {PASSWORD, *tokens, *shown} - {""}


def key_of(post: Post, generation: int = 0, did: str = ALICE) -> str:
    """The record key of `post`."""
    return record_key(
        did=did, site="blog", post_id=post.id, published_at_ms=post.published_at_ms, generation=generation
    )


def linking(url: str, **more: Any) -> dict[str, Any]:
    """A record that leads to `url`."""
    feature = {"$type": "app.bsky.richtext.facet#link", "uri": url}
    facet = {"index": {"byteStart": 0, "byteEnd": 1}, "features": [feature]}
    return {"$type": POST, "text": "x", "createdAt": "2026-01-01T00:00:00Z", "facets": [facet], **more}


def sent(world: World) -> list[Call]:
    """The writes that came to the first PDS."""
    return world.pds.calls("putRecord")


def session_key(world, did: str = ALICE) -> str:
    """Where the store has the account's session."""
    return f"{world.prefix}sessions:{did}"


async def session_of(world, host):
    """The session that `host` would use."""
    return await host.sessions.session(host.login(), world.clock.steady() + SOON)
