"""Who a client is: the address that limits count it by, told by proxies that may be believed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# So many proxies in a row are believed: each costs a look-up, and the header is the client's to begin.
MAX_HOPS: Final = 32

_LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
# What no address of the world is in: this host, and networks of somebody's own.
_OWN: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: `name` is what limits count it by. `exempt`: it may cause upstream requests without limit."""

    name: str
    exempt: bool = False


# We ourselves.
NOBODY: Final = Client("", exempt=True)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose X-Forwarded-For is believed: peers of this host, unix sockets, and `networks` of proxies.

    Clients in the networks `exempt` are free of the limit on upstream requests.
    """

    networks: Sequence[IpNetwork] = ()
    exempt: Sequence[IpNetwork] = ()

    def trusts(self, address: IpAddress) -> bool:
        """Whether `address` is a proxy that speaks for others."""
        return _is_in(address, (*_LOOPBACK, *self.networks))

    def client_of(self, peer: str | None, forwarded: Iterable[str]) -> Client:
        """Who sends a request: the rightmost address that is not trusted, else the leftmost.

        `peer` is the connection's other end (None: a unix socket), `forwarded` are the X-Forwarded-For
        headers in their order. What is no address ends the row: the proxy that passed it on is the client.
        """
        address = None if peer is None else address_of(peer)
        if address is None and peer is not None:
            return Client(peer)
        if address is not None and not self.trusts(address):
            return self._client(address)
        for hop in reversed(",".join(forwarded).rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            before = address_of(hop)
            if before is None:
                break
            address = before
            if not self.trusts(address):
                break
        return Client("") if address is None else self._client(address)

    def _client(self, address: IpAddress) -> Client:
        return Client(name_of(address), _is_in(address, self.exempt))


def is_own(address: IpAddress) -> bool:
    """Whether `address` is of this host or of a private network."""
    return any(address.version == network.version and address in network for network in _OWN)


def address_of(text: str) -> IpAddress | None:
    """The address in `text`, which may carry a port, brackets and a zone; None if it is none."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_in(address: IpAddress, networks: Iterable[IpNetwork]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def name_of(address: IpAddress) -> str:
    """What limits call a client: its IPv4 address, or the /64 of its IPv6 address: one customer has that."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
