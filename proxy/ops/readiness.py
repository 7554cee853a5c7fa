"""Asks the feedproxy of this host or container whether it is ready: `feedproxy probe`."""

from __future__ import annotations

import http.client
import ipaddress
from typing import Final

from proxy.errors import OperationalError

_TIMEOUT_S: Final = 4.0


def check_ready(host: str, port: int) -> None:
    """Ask whoever listens on `host`, which may stand for all addresses of this host, and `port`.

    Raises OperationalError unless it says that it is ready.
    """
    connection = http.client.HTTPConnection(reachable(host), port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise OperationalError(f"nothing answers on port {port}: {error}") from None
    finally:
        connection.close()
    if status != http.client.OK:
        raise OperationalError(f"not ready: {status}")


def reachable(host: str) -> str:
    """Where to ask who listens on `host`, which may stand for all addresses of this host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
