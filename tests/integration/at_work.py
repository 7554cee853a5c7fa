"""A worker of the queue, by hand."""

from __future__ import annotations

from proxy.syndication.queue import JobQueue, Leased


async def worker(queue: JobQueue, name: str = "w1", *accounts: str) -> str:
    """One that knows these accounts; its name."""
    await queue.introduce(name, dict.fromkeys(accounts or ("main",), "fp"))
    return name


async def lease(queue: JobQueue, name: str = "w1") -> Leased:
    """The one delivery there is to work on."""
    (leased,) = await queue.take(name, 10)
    return leased
