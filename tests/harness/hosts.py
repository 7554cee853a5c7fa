"""Hosts around one store: several `feedproxy serve`, each with web processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from integration.processes import ServeProcess

_PROGRAMS = Path(__file__).parents[1] / "integration"
# One that does not take the machine's slowness for the store's, and one of the next version.
PATIENT, NEWER = ("patient.py", "newer.py")
# Limits that nobody meets, unless a test is about them.
GENEROUS = {
    "UPSTREAM_RPS": 10_000,
    "UPSTREAM_BURST": 1000,
    "UPSTREAM_CONCURRENCY": 16,
    "TRUSTED_PROXIES": "127.0.0.1/32",
    "CLIENT_EXEMPT": "127.0.0.1/32",
    "LOG_LEVEL": "info",
}


def ports_of(hosts: Sequence[ServeProcess]) -> list[int]:
    """Where they listen."""
    return [int(host.base_url.rpartition(":")[2]) for host in hosts]


@contextlib.asynccontextmanager
async def running_hosts(
    directory: Path, programs: Sequence[str | None], **settings: object
) -> AsyncIterator[list[ServeProcess]]:
    """A host for each of `programs` (None: feedproxy itself), each with a data directory of its own."""
    with contextlib.ExitStack() as stack:
        hosts = []
        for number, program in enumerate(programs):
            command = (sys.executable, "-P", str(_PROGRAMS / program), "serve") if program else None
            host = ServeProcess(directory / f"host{number}", command=command, **(GENEROUS | settings))
            hosts.append(stack.enter_context(host))
        for host in hosts:
            await asyncio.to_thread(host.wait_ready)
        yield hosts
