"""Passwords and tokens are nowhere to be read: in no log, however talkative, no store, no file, no answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import httpx
import redis

from harness.newsroom import PASSWORD, Newsroom, published_at, token_of
from harness.pds import LOSE_ANSWER
from harness.upstream import xrpc_error
from harness.waiting import until
from integration.processes import ServeProcess, environment
from proxy.store.datadir import socket_path

ADMIN = "admin-token-admin-token-admin-token"
WRONG = "app-password-that-is-wrong"
GUESS = "a-token-that-somebody-guessed"
TOML = """
[[accounts]]
name = "main"
identifier = "alice.test"
password_env = "PASSWORD_main"

[[accounts]]
name = "side"
identifier = "bob.test"
password_file = "{password_file}"

[[sites]]
name = "blog"
token_env = "TOKEN_blog"
accounts = ["main", "side"]
callback_secrets_env = ["HOOK_blog"]
"""
EVERY_PAGE = (
    *(
        "/health",
        "/metrics",
        "/livez",
        "/readyz",
        "/ops",
        "/ops/login",
        "/purge",
        "/openapi.json",
        "/",
        "/widget.js",
    ),
    *("/embed/alice.test", "/xrpc/app.bsky.actor.getProfile?actor=alice.test", "/xrpc/none.such", "/nowhere"),
    *("/syndicate", "/syndicate?status=failed", "/syndicate/job_none"),
)
HOOK = "whsec_aG9vay1zZWNyZXQtaG9vay1zZWNyZXQtaG9vay1zZWNyZXQ"


class Told:
    """A CMS, and all that it is answered."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.answers: list[str] = []

    async def send(self, method: str, path: str, *, token: str = "", **options) -> httpx.Response:
        headers = {"authorization": f"Bearer {token or token_of('blog')}"}
        answer = await self._client.request(method, path, headers=headers, **options)
        self.answers.append(f"{answer.headers} {answer.text}")
        return answer

    async def post(self, number: int) -> str:
        document = {
            "id": str(number),
            "url": f"https://blog.example/{number}",
            "title": f"Post {number}",
            "published_at": published_at(),
        }
        return (await self.send("POST", "/syndicate", json=document)).json()["links"]["self"]

    async def until(self, path: str, **states: str) -> None:
        """Wait until each account of the job is in its state."""

        async def reached() -> bool:
            accounts = (await self.send("GET", path)).json()["accounts"]
            return {a["account"]: a["waiting_for"] or a["status"] for a in accounts} == states

        await until(reached)


def stored(path: str, pattern: str = "*") -> list[str]:
    """Every key that fits the pattern and its value, as text."""
    with contextlib.closing(redis.Redis(unix_socket_path=path)) as client:
        read = {
            b"hash": client.hgetall,
            b"string": client.get,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"list": lambda key: client.lrange(key, 0, -1),
            b"stream": client.xrange,
            b"none": lambda _: None,  # it has expired meanwhile
        }
        return [f"{key!r} {read[client.type(key)](key)!r}" for key in client.scan_iter(pattern, count=1000)]


def printed(directory, settings, *words: str) -> str:
    """All that a command says."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "proxy.cli", *words],
        env=environment(directory / "command", **settings),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def files(directory) -> list[str]:
    """What lies in the data directory."""
    return [path.read_bytes().decode("latin-1") for path in directory.rglob("*") if path.is_file()]


async def test_secrets_of_every_kind_are_nowhere(tmp_path, monkeypatch, store):
    password_file = tmp_path / "password"
    password_file.write_text(WRONG)
    config = tmp_path / "feedproxy.toml"
    config.write_text(TOML.format(password_file=password_file))
    environ = {"PASSWORD_main": PASSWORD, "TOKEN_blog": token_of("blog"), "HOOK_blog": HOOK}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    async with Newsroom(store.url, store.namespace, tmp_path).open() as room:
        settings = {
            "CONFIG": config,
            "UPSTREAM": room.directory.url,
            "PLC_URL": room.directory.url,
            "ADMIN_TOKEN": ADMIN,
            "ACCESS_LOG": "on",
            "SYNDICATION_RETRY_DELAYS": "0,0,0",
            "PDS_RPS": 1000,
            "PDS_BURST": 1000,
        }
        with ServeProcess(tmp_path / "data", **settings) as serve:
            await asyncio.to_thread(serve.wait_ready)
            async with httpx.AsyncClient(base_url=serve.base_url, trust_env=False, verify=False) as client:
                told = Told(client)
                await story(room, told, serve, password_file)
                seen = stored(str(socket_path(tmp_path / "data")))
            seen += files(tmp_path / "data")
            assert await asyncio.to_thread(serve.terminate) == 0
            seen += [serve.log_text(), *told.answers, *files(tmp_path / "data")]
    tokens = {call.token for pds in (room.alices, room.bobs) for call in pds.requests}
    for account in (*room.alices.accounts.values(), *room.bobs.accounts.values()):
        tokens |= {account.access, account.refresh, account.old_refresh}
    tokens -= {""}
    assert {token.split()[0] for token in tokens} == {"access", "refresh"}
    assert any("sealed" in text for text in seen)
    assert any('"level": "debug"' in text for text in seen)
    secrets = {*environ.values(), PASSWORD, WRONG, GUESS, ADMIN, token_of("blog"), *tokens}
    assert [secret for secret in secrets if any(secret in text for text in seen)] == []


async def test_passwords_of_stores_are_nowhere(tmp_path, store, upstream):
    """One that opens the queue's store, out of a file, and one that does not open the cache's."""
    right, wrong = "store-password-that-opens", "store-password-that-is-wrong"
    user = f"user-{store.namespace}"
    store._client.execute_command("ACL", "SETUSER", user, "on", f">{right}", "~*", "&*", "+@all")
    path = store.url.removeprefix("unix://")
    (tmp_path / "url").write_text(f"unix://{user}:{right}@{path}")
    (tmp_path / "token").write_text(ADMIN)
    settings = {
        "REDIS_URL_FILE": tmp_path / "url",
        "CACHE_REDIS_URL": f"unix://{user}:{wrong}@{path}",
        "NAMESPACE": store.namespace,
        "UPSTREAM": upstream.url,
        "ADMIN_TOKEN_FILE": tmp_path / "token",
        "ACCESS_LOG": "on",
    }
    try:
        with ServeProcess(tmp_path / "data", **settings) as serve:
            await asyncio.to_thread(serve.wait_ready)
            async with httpx.AsyncClient(base_url=serve.base_url, trust_env=False) as client:
                told = Told(client)
                for page in EVERY_PAGE:
                    await told.send("GET", page, token=ADMIN)
                refused = (await client.get("/health")).json()
            settings["PORT"] = httpx.URL(serve.base_url).port
            commands = [
                await asyncio.to_thread(printed, tmp_path, settings, *words)
                for words in (["config"], ["doctor"], ["top"])
            ]
            seen = stored(path, f"{store.namespace}:*")
            assert await asyncio.to_thread(serve.terminate) == 0
            seen += [serve.log_text(), *told.answers, *commands]
    finally:
        store._client.execute_command("ACL", "DELUSER", user)
    assert refused["checks"]["store"][0]["status"] == "warn"
    assert refused["checks"]["queue"][0]["status"] == "pass"
    assert any("feedproxy_queue_store_up 1.0" in text for text in seen)
    config, doctor, top = commands
    assert "FEEDPROXY_ADMIN_TOKEN=********" in config
    assert f"FEEDPROXY_CACHE_REDIS_URL=unix://{user}:********@" in config
    assert "cache" in doctor
    assert "workers alive" in top
    assert [secret for secret in (right, wrong, ADMIN) if any(secret in text for text in seen)] == []


async def story(room, told, serve, password_file):
    """Logins that work and that do not, refreshes, failures, guesses, and a reload."""
    first = await told.post(1)
    await told.until(first, main="completed", side="credentials")
    # Answers that are lost, and a server that repeats what it was told.
    for number, name in enumerate(("refreshSession", "putRecord")):
        room.alices.expire(room.alice)
        room.alices.fail(name, LOSE_ANSWER)
        await told.until(await told.post(10 + number), main="completed", side="credentials")
    answer = room.alices.answer
    room.alices.answer = lambda call: (
        xrpc_error(400, "InvalidRequest", f"I was told {call.token} {call.body}")
        if call.token
        else answer(call)
    )
    repeated = await told.post(20)
    await told.until(repeated, main="failed", side="credentials")
    assert "I was told ****" in told.answers[-1]
    room.alices.answer = answer
    room.bobs.fail("createSession", xrpc_error(401, "AuthenticationRequired", f"bad password {WRONG}"))
    await told.send("POST", f"{first}/retry")
    await told.until(first, main="completed", side="credentials")
    for token in (GUESS, ADMIN, PASSWORD):
        assert (await told.send("GET", first, token=token)).status_code == 401
    assert (await told.send("POST", "/syndicate", content=b"{")).status_code == 415
    for path in EVERY_PAGE:
        await told.send("GET", path)
        await told.send("GET", path, token=ADMIN)
        await told.send("GET", path, token=GUESS)
    password_file.write_text(PASSWORD)
    os.kill(serve.pid, signal.SIGHUP)
    await told.until(first, main="completed", side="completed")
