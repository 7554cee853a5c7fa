"""The proxy against the reference servers of the AT Protocol and its real clients.

Everything runs on loopback and on free ports; several runs side by side do not meet. Once:

    tests/real/install.sh

and then `pytest tests/real`. (install.sh sees to Postgres, Redis and `npm ci` in this directory.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from real.harness import Network, Proxy, plain_client


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network(tmp_path_factory.mktemp("network") / "network.log") as network:
        yield network


@pytest.fixture(scope="session")
def proxy(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy with its own defaults, shared by all tests that leave the network as it is."""
    proxy = Proxy(network.appview, tmp_path_factory.mktemp("proxy"), {})
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture
def start_proxy(network: Network, tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Start a proxy with settings of the test's own: start_proxy(CACHE_TTL="1")."""
    proxies: list[Proxy] = []

    def start(**settings: str) -> Proxy:
        directory = tmp_path / str(len(proxies))
        directory.mkdir()
        proxies.append(Proxy(network.appview, directory, settings))
        proxies[-1].start()
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.stop()


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
