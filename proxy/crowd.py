"""How many connections there may be, in all and from one client."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field

from proxy.clients import IpNetwork, Trust, address_of, name_of


@dataclass(slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections there may be, in all and from one client.

    A client is an IPv4 address or an IPv6 /64. Peers of this host, and those in `trusted` (proxies, which
    speak for many), are bound by the total alone.
    """

    total: int
    per_client: int
    trusted: tuple[IpNetwork, ...] = ()
    _open: int = 0
    _by_client: Counter[str] = field(default_factory=Counter)

    @property
    def open(self) -> int:
        """How many there are."""
        return self._open

    def admit(self, peer: str | None) -> bool:
        """Count one more connection from `peer` (None: a unix socket); False if that is one too many."""
        client = self._client(peer)
        if self._open >= self.total or (client and self._by_client[client] >= self.per_client):
            return False
        self._open += 1
        if client:
            self._by_client[client] += 1
        return True

    def release(self, peer: str | None) -> None:
        """A connection that was admitted has ended."""
        client = self._client(peer)
        self._open -= 1
        if client:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    def _client(self, peer: str | None) -> str | None:
        """The name under which `peer` is counted, None if it is not."""
        return None if peer is None else _counted_name(peer, self.trusted)


# Most who come have been here before, and each comes and goes.
@functools.lru_cache(1024)
def _counted_name(peer: str, trusted: tuple[IpNetwork, ...]) -> str | None:
    address = address_of(peer)
    return None if address is None or Trust(trusted).trusts(address) else name_of(address)
