"""Several processes of a fleet inside the test's own, on one store and before one upstream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import httpx

from harness.proxy import Proxy, running_proxy
from harness.valkey import StoreOfTest


@contextlib.asynccontextmanager
async def fleet(
    count: int, upstream_url: str, store: StoreOfTest, **options: object
) -> AsyncIterator[list[Proxy]]:
    """`count` processes with the same settings."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running_proxy(upstream_url, store, **options))
            for _ in range(count)
        ]


async def everywhere(proxies: Sequence[Proxy], count: int, *targets: str) -> list[httpx.Response]:
    """`count` clients of each process ask at once for each of `targets`."""
    asked = (proxy.get(target) for _ in range(count) for proxy in proxies for target in targets)
    return list(await asyncio.gather(*asked))
