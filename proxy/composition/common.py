"""What both paths are made of."""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from proxy.clock import Clock
from proxy.errors import UsageError
from proxy.settings import Settings
from proxy.store.connection import Store, connect
from proxy.version import VERSION


def store_of(settings: Settings, clock: Clock) -> Store:
    """The store of cache, limiter and leases."""
    url = settings.store_url
    if url is None:
        raise UsageError("FEEDPROXY_REDIS_URL is not set, and there is no embedded store in this process")
    return connect(url, clock)


def client_of(settings: Settings, transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """The HTTP client of a process."""
    return httpx.AsyncClient(
        transport=transport,
        headers={"user-agent": user_agent(settings)},
        # A cookie for one question would go along with everyone's.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        trust_env=False,
    )


def user_agent(settings: Settings) -> str:
    """What we say of ourselves."""
    contact = f" ({settings.contact})" if settings.contact else ""
    return f"feedproxy/{VERSION}{contact}"
