"""What is done for accounts ahead of their posts: who they are is known, and nothing is held up by it."""

from __future__ import annotations

import asyncio
import hashlib
import threading

import pytest

from harness.newsroom import Newsroom
from harness.redis_servers import redis_server
from harness.upstream import xrpc_error
from harness.waiting import until
from proxy.syndication import accounts as accounts_module
from proxy.syndication import preparing
from proxy.syndication.publisher import login_of


@pytest.fixture
async def room(store, tmp_path):
    async with Newsroom(store.url, store.namespace, tmp_path).open() as room:
        yield room


def did_of(host, identifier="alice.test"):
    """A condition: the account is known; its DID."""
    return lambda: host.posts.pins.known(identifier)


async def test_the_first_post_is_told_its_uri_before_anybody_logged_in(room):
    async with room.host() as host:
        assert await until(did_of(host)) == room.alice
        job = (await host.send()).json()
        (account,) = job["accounts"]
        assert account["did"] == room.alice
        assert account["uri"].startswith(f"at://{room.alice}/app.bsky.feed.post/")
        assert room.logins == 0
        async with host.working():
            assert (await host.until_shown(job, status="completed"))["uri"] == account["uri"]


async def test_what_one_host_has_found_out_all_know(room):
    async with room.host() as host:
        await until(did_of(host))
    await room.directory.stop()
    async with room.host() as host:
        assert (await host.send()).json()["accounts"][0]["did"] == room.alice


async def test_a_network_that_is_away_is_asked_again(room, monkeypatch):
    monkeypatch.setattr(preparing, "PAUSE_BASE_S", 0.01)
    await room.directory.stop()
    async with room.host() as host:
        assert (await host.send()).json()["accounts"][0]["did"] is None
        await room.directory.start()
        await until(did_of(host))
        assert (await host.send(host.post(2))).json()["accounts"][0]["did"] == room.alice


async def test_a_store_that_is_away_too(room, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "PAUSE_BASE_S", 0.01)
    with redis_server() as server:
        server.kill()
        room.url = server.url
        async with room.host() as host:
            server.start()

            async def known():
                return (await host.send()).json().get("accounts", [{}])[0].get("did")

            assert await until(known) == room.alice


async def test_one_that_leads_nowhere_or_is_busy_holds_up_no_other(room, monkeypatch):
    monkeypatch.setattr(preparing, "PAUSE_BASE_S", 0.01)
    answer = room.directory.answer

    def busy(call):
        if call.param("handle") == "busy.test":
            return xrpc_error(429, "RateLimitExceeded", headers={"Retry-After": "3600"})
        return answer(call)

    room.directory.answer = busy
    names = {"a": "busy.test", "b": "nowhere.test", "main": "alice.test", "c": "did:plc:known"}
    async with room.host(names) as host:
        await until(did_of(host))

        def asked(handle):
            return sum(call.param("handle") == handle for call in room.directory.requests)

        await until(lambda: asked("nowhere.test") >= 4)
        assert (asked("busy.test"), asked("alice.test")) == (1, 1)
        room.directory.handles["nowhere.test"] = "did:plc:found"
        assert await until(did_of(host, "nowhere.test")) == "did:plc:found"


async def test_accounts_that_come_with_a_reload_are_known_at_once(room):
    async with room.host() as host, room.host({"main": "alice.test", "new": "carol.test"}) as other:
        room.directory.handles["carol.test"] = "did:plc:carol"
        secrets = {"PASSWORD_main": "x", "PASSWORD_new": "x", "TOKEN_blog": "t" * 20}
        await until(did_of(host))
        await host.posts.book.reload(other.settings.tenants, secrets)
        assert await until(did_of(host, "carol.test")) == "did:plc:carol"


async def test_fingerprints_are_computed_beside_the_loop_and_once(room, monkeypatch):
    threads = []
    scrypt = hashlib.scrypt

    def noting(*args, **options):
        threads.append(threading.get_ident())
        return scrypt(*args, **options)

    monkeypatch.setattr(accounts_module.hashlib, "scrypt", noting)
    async with room.host(passwords={"side": "wrong"}) as host, host.working():
        job = (await host.send()).json()
        await host.until_shown(job, status="completed")
        secrets = {
            "PASSWORD_main": "app-password-of-everybody",
            "PASSWORD_side": "new",
            "TOKEN_blog": "t" * 20,
        }
        before = len(set(threads)), len(threads)
        await host.posts.book.reload(host.settings.tenants, secrets)
        assert len(threads) == before[1] + 1, "of two accounts one has another password"
        host.workers[0].reload()
        known = host.posts.fingerprints()
    assert set(known) == {"main", "side"}
    assert threading.get_ident() not in threads


async def test_posts_go_out_at_once_while_the_store_is_away_and_nobody_logs_in(tmp_path):
    """200 of them, from a host that has published nothing itself."""
    with redis_server() as server:
        async with Newsroom(server.url, "away", tmp_path).open() as room:
            async with room.host() as worker, worker.working():
                await worker.until_shown((await worker.send(worker.post("first"))).json(), status="completed")
            async with room.host() as host:
                sessions = host.posts.sessions
                login = login_of(host.posts.book.current, "main")
                await until(lambda: sessions.remembered(login))
                server.kill()
                posts = [host.post(number) for number in range(200)]
                answers = []
                for start in range(0, 200, 50):
                    answers += await asyncio.gather(*map(host.send, posts[start : start + 50]))
                shown = [answer.json() for answer in answers]
                assert {answer.status_code for answer in answers} == {200}
                assert {body["status"] for body in shown} == {"completed"}
                assert {body["id"] for body in shown} == {None}
                uris = [body["accounts"][0]["uri"] for body in shown]
                assert len(set(uris)) == 200
                assert (room.logins, room.refreshes) == (1, 0)
                assert len(room.alices.commits) == 201
                # Sent again once the queue is back, empty: each is found where it was said to be.
                server.start()
                async with host.working():
                    for post, uri in zip(posts[:20], uris, strict=False):
                        job = await until(lambda again=post: taken(host, again))
                        assert (await host.until_shown(job, status="completed"))["uri"] == uri
                assert (room.logins, len(room.alices.commits)) == (1, 201)


async def taken(host, post):
    """The post's job; None while the store is still taken for away."""
    answer = await host.send(post)
    return answer.json() if answer.status_code == 202 else None
