"""The proxy against the reference servers of the AT Protocol and its real clients.

Everything runs on loopback and on free ports; several runs side by side do not meet. Once:

    tests/real/install.sh

and then `pytest tests/real`. (install.sh sees to Postgres, Redis and `npm ci` in this directory.)
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser
from real.browser import Reader, Site, reader, running_browser, running_site
from real.harness import HERE, Network, Proxy, plain_client, running_proxy

# The first test waits for a PDS and an AppView to start, on a machine that may be busy with other things.
TEST_TIMEOUT_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network(tmp_path_factory.mktemp("network") / "network.log") as network:
        yield network


@pytest.fixture(scope="session")
def pdses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A directory and two PDSs, without AppView and accounts: for what is written."""
    with Network(tmp_path_factory.mktemp("pdses") / "network.log", "--pds-only") as network:
        yield network


@pytest.fixture(scope="session")
def proxy(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy with its own defaults, shared by all tests that leave the network as it is."""
    with running_proxy(network, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.fixture
def start_proxy(network: Network, tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Start a proxy with settings of the test's own: start_proxy(CACHE_TTL="1")."""
    with contextlib.ExitStack() as proxies:

        def start(**settings: str) -> Proxy:
            return proxies.enter_context(running_proxy(network, tmp_path, **settings))

        yield start


@pytest.fixture
def direct(network: Network) -> Iterator[httpx.Client]:
    """Asks the AppView itself."""
    with plain_client(network.appview) as client:
        yield client


@pytest.fixture
def proxied(proxy: Proxy) -> Iterator[httpx.Client]:
    """Asks the shared proxy."""
    with plain_client(proxy.url) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, for tests that share their module's loop."""
    async with running_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def read(browser: Browser) -> AsyncIterator[Callable[..., object]]:
    """Open a page as a new reader: await read(url, color_scheme="dark")."""
    async with contextlib.AsyncExitStack() as readers:

        async def open_page(url: str, **options: object) -> Reader:
            visitor = await readers.enter_async_context(reader(browser, **options))
            await visitor.open(url)
            return visitor

        yield open_page


@pytest.fixture
def site() -> Iterator[Site]:
    """A web site that is not the proxy's."""
    with running_site() as site:
        yield site
