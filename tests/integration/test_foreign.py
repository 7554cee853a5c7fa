"""Pages and pictures are read in a child: whatever they contain, it costs little and ends in time."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from harness.pictures import bomb, opened, picture
from harness.waiting import until
from proxy.clock import SystemClock
from proxy.errors import OutsideRefused
from proxy.syndication.card import Card
from proxy.syndication.foreign import ForeignReader

CLOCK = SystemClock()
# More than a processor can parse in minutes, and less than a page may have.
DEEP = b"<div>" * 200_000


def soon(seconds=60.0):
    return CLOCK.steady() + seconds


def children() -> set[str]:
    """Processes that are ours and live."""
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


def environment_of(pids: set[str]) -> bytes:
    """That of a child, once it is no copy of this process any more; never empty then."""
    for pid in pids:
        if b"foreign_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return Path(f"/proc/{pid}/environ").read_bytes() + b"."
    return b""


@pytest.fixture
def reader():
    return ForeignReader(CLOCK)


async def test_a_page_is_read(reader):
    page = "<title>Grüße</title><meta name=description content='Ein Text'>".encode("latin-1")
    card = await reader.card(page, url="http://blog.example/", charset="latin-1", deadline=soon())
    assert card == Card(title="Grüße", description="Ein Text")


async def test_a_picture_is_read(reader):
    made = await reader.picture(picture("WEBP", size=(400, 200)), edge=100, deadline=soon())
    assert (made.width, made.height) == (100, 50)
    assert opened(made.content).size == (100, 50)


async def test_a_page_that_holds_the_parser_is_left_at_the_deadline(reader):
    before = children()
    with pytest.raises(OutsideRefused, match="too long"):
        await reader.card(DEEP, url="http://blog.example/", charset="", deadline=soon(0.7))
    assert children() == before


async def test_what_is_no_picture_is_refused_with_the_reason(reader):
    for source, reason in ((bomb(), "too many pixels"), (b"<html>", "is no JPEG")):
        with pytest.raises(OutsideRefused, match=reason):
            await reader.picture(source, edge=100, deadline=soon())


async def test_a_deadline_that_has_passed_starts_nothing(reader):
    with pytest.raises(OutsideRefused, match="too long"):
        await reader.picture(picture(), edge=100, deadline=CLOCK.steady() - 1)


async def test_a_canceled_reading_ends_its_child(reader):
    before = children()
    reading = asyncio.create_task(reader.card(DEEP, url="http://a/", charset="", deadline=soon()))
    await until(lambda: children() != before)
    reading.cancel()
    await asyncio.wait([reading])
    assert children() == before


async def test_a_child_has_no_secret_in_its_environment(reader, monkeypatch):
    monkeypatch.setenv("BSKY_MAIN_PASSWORD", "a secret")
    before = children()
    reading = asyncio.create_task(reader.card(DEEP, url="http://a/", charset="", deadline=soon()))
    environment = await until(lambda: environment_of(children() - before))
    assert b"a secret" not in environment
    assert b"a secret" in os.environb[b"BSKY_MAIN_PASSWORD"]
    reading.cancel()
    await asyncio.wait([reading])


async def test_few_children_run_at_a_time(reader):
    before = children()
    readings = [
        asyncio.create_task(reader.card(DEEP, url="http://a/", charset="", deadline=soon())) for _ in range(6)
    ]
    await until(lambda: len(children() - before) >= 2)
    most = len(children() - before)
    for reading in readings:
        reading.cancel()
    await asyncio.wait(readings)
    assert most == 2
    assert children() == before
