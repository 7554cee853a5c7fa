"""The intake behind the real HTTP server: bodies, long polls and event streams as they are on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest

from harness.intake import BLOG, build_office
from harness.waiting import until
from proxy.settings import load_settings
from proxy.syndication.job import DeliveryState
from proxy.web_server import web_server


@pytest.fixture
async def office(clock):
    office = build_office(clock)
    server = web_server(office.app, load_settings({}))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)  # noqa: FBT003
        office.address = listener.getsockname()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.listening.wait()
        async with office.client:
            yield office
        office.draining.set()
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def connection(office):
    reader, writer = await asyncio.open_connection(*office.address)
    try:
        yield reader, writer
    finally:
        writer.close()


def head(method, target, *lines):
    fields = (f"{method} {target} HTTP/1.1", "Host: proxy.test", f"Authorization: Bearer {BLOG}", *lines)
    return "\r\n".join((*fields, "", "")).encode()


async def answer_of(reader):
    text = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(next(line for line in text.lower().split("\r\n") if "content-length" in line).split(":")[1])
    return int(text.split(" ")[1]), json.loads(await reader.readexactly(length))


def waiting(office):
    return sum(office.waiters._waiting.values())


async def test_a_post_over_http(office):
    async with connection(office) as (reader, writer):
        for number in range(3):
            body = json.dumps(office.post(id=str(number))).encode()
            writer.write(
                head("POST", "/syndicate", "Content-Type: application/json", f"Content-Length: {len(body)}")
                + body
            )
            status, job = await answer_of(reader)
            assert (status, job["status"]) == (202, "pending")


async def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(office):
    async with connection(office) as (reader, writer):
        writer.write(head("POST", "/syndicate", "Content-Type: application/json", "Content-Length: 65537"))
        status, problem = await answer_of(reader)
        assert (status, problem["code"]) == (413, "too_large")


async def test_a_body_in_chunks_is_refused_once_it_is_too_large(office):
    async with connection(office) as (reader, writer):
        writer.write(
            head("POST", "/syndicate", "Content-Type: application/json", "Transfer-Encoding: chunked")
        )
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        writer.write(chunk * 17)
        status, problem = await answer_of(reader)
        assert (status, problem["code"]) == (413, "too_large")


async def test_events_arrive_as_they_happen_and_the_place_is_free_when_the_client_goes(office):
    job = (await office.send()).json()["id"]
    async with connection(office) as (reader, writer):
        writer.write(head("GET", f"/syndicate/{job}/events"))
        assert b"text/event-stream" in await reader.readuntil(b"\r\n\r\n")
        assert b'"status":"pending"' in await reader.readuntil(b"event: status\n") + await reader.readuntil(
            b"\n\n"
        )
        await until(lambda: waiting(office) == 1)
        await office.desk.change(job, DeliveryState.DELAYED, failures=1)
        assert b'"status":"retrying"' in await reader.readuntil(b"event: status\n") + await reader.readuntil(
            b"\n\n"
        )
    await until(lambda: waiting(office) == 0)


async def test_a_client_that_gives_up_its_long_poll_frees_its_place(office):
    job = (await office.send()).json()["id"]
    async with connection(office) as (_, writer):
        writer.write(head("GET", f"/syndicate/{job}?wait=60"))
        await until(lambda: waiting(office) == 1)
    await until(lambda: waiting(office) == 0)


async def test_a_shutdown_ends_what_waits_with_an_answer(office):
    job = (await office.send()).json()["id"]
    async with connection(office) as (poll, poll_writer), connection(office) as (events, events_writer):
        poll_writer.write(head("GET", f"/syndicate/{job}?wait=60"))
        events_writer.write(head("GET", f"/syndicate/{job}/events"))
        await until(lambda: waiting(office) == 2)
        office.draining.set()
        status, shown = await answer_of(poll)
        assert (status, shown["status"]) == (200, "pending")
        # The end of a chunked body: the stream is complete, not cut.
        await events.readuntil(b"0\r\n\r\n")
