"""Which addresses are of the public internet, and may be connected to because a stranger says so. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from proxy.clients import IpAddress, IpNetwork

WEB_PORTS: Final = frozenset({80, 443})

# What the IANA special-purpose registries keep for something else than hosts of the public internet
# (https://www.iana.org/assignments/iana-ipv4-special-registry), multicast and relays of translators included.
# Our own table, since that of `ipaddress` differs between versions of Python.
_NOT_PUBLIC_V4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local, and the metadata of clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
# Everything outside of it is local, multicast, unassigned, or an IPv4 address in disguise (mapped,
# compatible, NAT64).
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments; Teredo carries IPv4 addresses
            "2001:db8::/32",
            "2002::/16",  # 6to4 carries IPv4 addresses
            "3fff::/20",
        ),
    )
)


def is_public(address: IpAddress) -> bool:
    """Whether `address` is one of a host of the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _NOT_PUBLIC_V6)


def may_connect(address: str, port: int, allowed: Sequence[IpNetwork]) -> bool:
    """Whether a stranger may have us connect to `address`: a web server of the public internet, or `allowed`.

    `address` is numeric. Networks that are `allowed` are so with all their ports.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if any(parsed.version == network.version and parsed in network for network in allowed):
        return True
    return port in WEB_PORTS and is_public(parsed)
