"""The commands of operators, from the arguments to what is printed, on a real store."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from harness.pds import Directory, PdsServer
from harness.proxy import feed, running_proxy
from harness.queue import QueueOfTest, queue_on, submission
from harness.waiting import until
from proxy import cli
from proxy.syndication.chain import CallbackOutcome
from proxy.syndication.queue import Stream

HOSTILE = "\x1b]0;owned\x07[red]bold[/red] \u202egnol oot\u009b2J"
CONFIG = """
[[accounts]]
name = "main"
identifier = "did:plc:main"
password_env = "MAIN_PASSWORD"

[[accounts]]
name = "side"
identifier = "did:plc:side"
password_env = "SIDE_PASSWORD"

[[sites]]
name = "blog"
token_env = "BLOG_TOKEN"
accounts = ["main", "side"]
"""


@pytest.fixture
def stored(store):
    own = QueueOfTest(store.url, store.namespace)
    yield own
    assert own.faults() == []
    own.close()


@pytest.fixture
def feedproxy(store, stored, tmp_path, monkeypatch, capsys):
    """Run a command in this process: exit code, stdout, stderr."""
    (tmp_path / "feedproxy.toml").write_text(CONFIG, encoding="utf-8")
    environ = {
        "FEEDPROXY_CONFIG": str(tmp_path / "feedproxy.toml"),
        "FEEDPROXY_REDIS_URL": store.url,
        "FEEDPROXY_NAMESPACE": store.namespace,
        "FEEDPROXY_DATA_DIR": str(tmp_path / "data"),
        "BLOG_TOKEN": "the-token-of-the-site-blog",
        "MAIN_PASSWORD": "the-password-of-main",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["feedproxy", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        said = capsys.readouterr()
        return SimpleNamespace(code=exited.value.code or 0, out=said.out, err=said.err)

    return run


@pytest.fixture
def at_queue(store):
    """Do something with the queue itself."""

    def run(work):
        async def carry_out():
            async with queue_on(store.url, store.namespace) as queue:
                await queue.introduce("w1", {"main": "fp", "side": "fp"})
                return await work(queue)

        return asyncio.run(carry_out())

    return run


def listed(feedproxy, *arguments):
    done = feedproxy(*arguments, "--json")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


async def died(queue, *, count=1, reason="no", account="main", **changes):
    jobs = []
    for number in range(count):
        given = submission(f"{reason[:5]}{account}{number}", accounts=(account,), **changes)
        jobs.append((await queue.enqueue(given)).job)
        (leased,) = await queue.take("w1", 1)
        await queue.fail(leased, reason)
    return jobs


async def posted(queue, *posts, **changes):
    return [(await queue.enqueue(submission(post, **changes))).job for post in posts]


def test_jobs_are_listed_and_shown(feedproxy, at_queue):
    (failed,) = at_queue(lambda queue: died(queue, account="side"))
    first, second = at_queue(lambda queue: posted(queue, "1", "2", group="autumn"))
    assert [job["id"] for job in listed(feedproxy, "jobs", "list")] == [second, first, failed]
    for arguments, wanted in (
        (("--limit", "1"), [second]),
        (("--group", "autumn"), [second, first]),
        (("--status", "failed"), [failed]),
        (("--account", "side"), [failed]),
    ):
        assert [job["id"] for job in listed(feedproxy, "jobs", "list", *arguments)] == wanted
    table = feedproxy("jobs", "list")
    assert table.code == 0
    assert all(job in table.out for job in (first, second, failed))
    report = listed(feedproxy, "jobs", "show", second)
    (account,) = report["accounts"]
    (cause,) = account["waiting_for"]
    assert (report["group"], account["position"], cause["code"]) == ("autumn", 2, "turn")
    shown = feedproxy("jobs", "show", second)
    assert "waits (turn): it is number 2 of 2 in the queue of main" in shown.out
    assert feedproxy("jobs", "show", "job_none").code == 1
    assert feedproxy("jobs", "list", "--status", "strange").code == 2


def test_a_site_that_nobody_knows_is_said_to_be_none(feedproxy, at_queue, monkeypatch):
    at_queue(lambda queue: posted(queue, "1"))
    done = feedproxy("jobs", "list", "--site", "blgo", "--json")
    assert (done.code, json.loads(done.out)) == (0, [])
    assert done.err == "feedproxy: 'blgo' is no site of feedproxy.toml, which has: blog\n"
    monkeypatch.delenv("FEEDPROXY_CONFIG")
    assert "say --site" in feedproxy("jobs", "list").err
    done = feedproxy("jobs", "list", "--site", "blog", "--json")
    assert (len(json.loads(done.out)), "which has: none" in done.err) == (1, True)


def test_a_job_is_canceled_and_tried_again(feedproxy, at_queue):
    (waiting,) = at_queue(lambda queue: posted(queue, "1"))
    assert feedproxy("jobs", "cancel", waiting).out == f"{waiting}: main canceled\n"
    (failed,) = at_queue(died)
    assert feedproxy("jobs", "retry", failed).out == f"{failed}: main pending\n"
    again = feedproxy("jobs", "retry", failed)
    assert (again.code, again.out) == (1, "")
    nothing = "nothing of it has failed or waits for credentials, nor has its callback failed"
    assert again.err == f"feedproxy: {failed}: {nothing}\n"
    for what in ("retry", "cancel"):
        assert feedproxy("jobs", what, "job_none").code == 1


def test_where_a_failed_post_was_to_be_is_shown(feedproxy, at_queue):
    async def refused(queue):
        given = replace(submission("1"), accounts={"main": "did:plc:main"})
        job = (await queue.enqueue(given)).job
        (leased,) = await queue.take("w1", 1)
        await queue.fail(leased, "conflict")
        return job

    (account,) = listed(feedproxy, "jobs", "show", at_queue(refused))["accounts"]
    assert account["status"] == "failed"
    assert account["uri"].startswith("at://did:plc:main/app.bsky.feed.post/")


def test_a_record_that_was_deleted_is_said_to_be(feedproxy, at_queue):
    async def carry_out(queue):
        (leased,) = await queue.take("w1", 1)
        await queue.finish(leased, uri="at://did:plc:main/app.bsky.feed.post/1", cid="c")

    (job,) = at_queue(lambda queue: posted(queue, "1"))
    at_queue(carry_out)
    assert "main: completed\n" in feedproxy("jobs", "show", job).out
    at_queue(lambda queue: posted(queue, "1", wanted=False, unpublish="delete"))
    assert "main: pending (deletion)\n" in feedproxy("jobs", "show", job).out
    at_queue(carry_out)
    assert "main: deleted\n" in feedproxy("jobs", "show", job).out
    (line,) = listed(feedproxy, "jobs", "list")
    assert (line["status"], line["accounts"]) == ("completed", {"main": "deleted"})


def test_a_callback_that_failed_is_shown_and_tried_again(feedproxy, at_queue):
    async def done_but_gone(queue):
        given = submission("1", callback_url="https://blog.example/hook")
        job = (await queue.enqueue(given)).job
        (leased,) = await queue.take("w1", 1)
        await queue.finish(leased, uri="at://did:plc:main/app.bsky.feed.post/1", cid="c")
        (leased,) = await queue.take("w1", 1, stream=Stream.ERRANDS)
        await queue.notified(leased, CallbackOutcome.DISABLED, "answered 410")
        return job

    job = at_queue(done_but_gone)
    told = listed(feedproxy, "jobs", "show", job)["callback"]
    assert (told["status"], told["attempts"], told["error"]) == ("disabled", 1, "answered 410")
    at_queue(lambda queue: posted(queue, "2"))
    at_queue(lambda queue: posted(queue, "3", callback_url="https://blog.example/hook"))
    (line,) = listed(feedproxy, "jobs", "list", "--callback", "disabled")
    assert (line["id"], line["callback"]) == (job, "disabled")
    assert listed(feedproxy, "jobs", "list", "--callback", "disabled", "--account", "side") == []
    assert len(listed(feedproxy, "jobs", "list")) == 3
    assert feedproxy("jobs", "list", "--callback", "lost").code == 2
    assert "callback: disabled\n  attempts: 1\n  error: answered 410\n" in feedproxy("jobs", "show", job).out
    assert feedproxy("jobs", "retry", job).out == f"{job}: main completed\n"
    assert "callback: pending\n" in feedproxy("jobs", "show", job).out
    assert feedproxy("jobs", "retry", job).code == 1


def test_dead_letters_are_listed_counted_tried_again_and_dropped(feedproxy, at_queue, stored):
    at_queue(lambda queue: died(queue, count=3, reason="bad word"))
    at_queue(lambda queue: died(queue, reason="too long", account="side"))
    assert len(listed(feedproxy, "dead", "list")) == 4
    assert [line["error"] for line in listed(feedproxy, "dead", "list", "--account", "side")] == ["too long"]
    assert listed(feedproxy, "dead", "list", "--older-than", "1d") == []
    assert len(listed(feedproxy, "dead", "list", "--newer-than", "15m", "--limit", "2")) == 2
    summary = listed(feedproxy, "dead", "list", "--summary")
    assert [(line["account"], line["reason"], line["count"]) for line in summary] == [
        ("main", "bad word", 3),
        ("side", "too long", 1),
    ]
    for wrong in ((), ("--all", "--account", "main"), ("--older-than", "soon")):
        for what in ("retry", "drop"):
            assert feedproxy("dead", what, *wrong).code == 2
    assert stored.states() == {"dead": 4}
    assert feedproxy("dead", "retry", "--reason", "Too").out == "1 tried again\n"
    assert feedproxy("dead", "drop", "--all").out == "3 dropped\n"
    assert stored.states() == {"ready": 1, "canceled": 3}


def test_pause_and_resume(feedproxy, at_queue, stored):
    (job,) = at_queue(lambda queue: posted(queue, "1"))
    assert feedproxy("pause").code == 0
    assert feedproxy("accounts", "pause", "main").out == "main is paused\n"
    assert "everything is paused since" in feedproxy("accounts", "list").err
    shown = feedproxy("jobs", "show", job).out
    assert "waits (account_paused): main is paused; `feedproxy accounts resume main` ends that" in shown
    assert "waits (paused): everything is paused; `feedproxy resume` ends that" in shown
    assert feedproxy("resume").code == 0
    (main, side) = listed(feedproxy, "accounts", "list")
    assert (main["state"], main["waiting"], side["state"]) == ("paused", 1, "open")
    assert feedproxy("accounts", "resume", "main").code == 0
    assert stored.hash("account:main").get("bell")
    unknown = feedproxy("accounts", "pause", "mian")
    assert (unknown.code, "which has: main, side" in unknown.err) == (2, True)


def test_what_was_done_is_told_to_programs_as_over_http(feedproxy, at_queue):
    (job,) = at_queue(lambda queue: posted(queue, "1"))
    assert listed(feedproxy, "pause") == {"paused": "everything"}
    assert listed(feedproxy, "resume") == {"resumed": "everything"}
    assert listed(feedproxy, "accounts", "pause", "main") == {"paused": "main"}
    assert listed(feedproxy, "accounts", "resume", "main") == {"resumed": "main"}
    assert listed(feedproxy, "jobs", "cancel", job)["status"] == "canceled"
    at_queue(lambda queue: died(queue, count=3, reason="bad word"))
    at_queue(lambda queue: died(queue, reason="too long", account="side"))
    failed = listed(feedproxy, "dead", "list", "--account", "main")[0]["job"]
    assert listed(feedproxy, "jobs", "retry", failed)["id"] == failed
    assert listed(feedproxy, "dead", "retry", "--account", "side") == {"retried": 1}
    assert listed(feedproxy, "dead", "drop", "--all") == {"dropped": 2}
    assert listed(feedproxy, "purge", "--all") == {"purged": "all"}
    assert listed(feedproxy, "purge", "--actor", "did:plc:a") == {"purged": "did:plc:a"}


def test_an_emptied_store_is_told(feedproxy, at_queue, stored):
    feedproxy("pause")
    mark = at_queue(lambda queue: queue.mark(""))[0]
    stored.delete_all()
    at_queue(lambda queue: queue.mark(mark))
    assert "the store was found empty at" in feedproxy("accounts", "list").err
    feedproxy("resume")
    assert "found empty" not in feedproxy("accounts", "list").err


def test_what_tenants_write_can_do_nothing(feedproxy, at_queue):
    (job,) = at_queue(lambda queue: posted(queue, HOSTILE, group=HOSTILE))
    at_queue(lambda queue: died(queue, reason=HOSTILE, account="side"))
    for arguments in (
        ("jobs", "list"),
        ("jobs", "list", "--json"),
        ("jobs", "show", job),
        ("dead", "list"),
        ("dead", "list", "--json"),
        ("dead", "list", "--summary"),
        ("jobs", "show", HOSTILE),
    ):
        done = feedproxy(*arguments)
        printed = done.out + done.err
        assert not [char for char in printed if not char.isprintable() and char != "\n"], arguments
        assert "[red]bold[/red]" in printed, "shown as it is, not obeyed"
    assert listed(feedproxy, "jobs", "list", "--group", HOSTILE)[0]["post"] == HOSTILE


def test_a_store_that_does_not_answer_is_said_to(feedproxy, monkeypatch, tmp_path):
    monkeypatch.setenv("FEEDPROXY_REDIS_URL", f"unix://{tmp_path}/none.sock")
    done = feedproxy("jobs", "list")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("feedproxy: the store does not answer")
    monkeypatch.delenv("FEEDPROXY_REDIS_URL")
    for arguments in (("pause",), ("purge", "--all")):
        done = feedproxy(*arguments)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert "answers while `feedproxy serve` runs, and there is none on" in done.err


@pytest.mark.parametrize(
    "arguments", [(), ("--all", "--key", "/xrpc/x"), ("--actor", "no actor"), ("--key", "/elsewhere")]
)
def test_a_purge_must_be_meant(feedproxy, arguments):
    assert feedproxy("purge", *arguments).code == 2


async def test_accounts_are_checked_at_their_servers(feedproxy, tmp_path, monkeypatch):
    async with Directory() as directory, PdsServer(directory) as pds:
        pds.host("did:plc:main", "main.test", "the-password-of-main")
        pds.host("did:plc:side", "side.test", "another password")
        monkeypatch.setenv("FEEDPROXY_PLC_URL", directory.url)
        monkeypatch.setenv("FEEDPROXY_UPSTREAM", directory.url)

        async def checked(*arguments):
            done = await asyncio.to_thread(feedproxy, "accounts", "check", *arguments, "--json")
            return done.code, json.loads(done.out)

        code, (main, side) = await checked()
        assert (code, main) == (
            1,
            {"account": "main", "did": "did:plc:main", "pds": pds.url, "trouble": None},
        )
        assert side["trouble"] == "there is no password for side here"
        # What has a session needs no other login, as long as its server takes it.
        assert (await checked("main"))[0] == 0
        pds.expire("did:plc:main")
        assert (await checked("main"))[0] == 0
        assert len(pds.calls("createSession")) == 1
        monkeypatch.setenv("SIDE_PASSWORD", "not this one")
        code, (side,) = await checked("side")
        assert (code, "AuthenticationRequired" in side["trouble"]) == (1, True)


async def test_a_purge_reaches_every_process(feedproxy, store, upstream, monkeypatch):
    monkeypatch.setenv("FEEDPROXY_UPSTREAM", upstream.url)
    async with running_proxy(upstream.url, store) as proxy:
        for arguments in (("--actor", "alice.test"), ("--key", feed("alice.test")), ("--all",)):
            await proxy.get(feed("alice.test"))
            assert "hit" in (await proxy.get(feed("alice.test"))).headers["cache-status"]
            known = proxy.web.reading.purges.known
            done = await asyncio.to_thread(feedproxy, "purge", *arguments)
            assert (done.code, done.out) == (0, "purged\n")
            await until(lambda before=known: proxy.web.reading.purges.known > before)
            assert "hit" not in (await proxy.get(feed("alice.test"))).headers["cache-status"]
