"""The sockets that a host listens on: had from an address, shown in logs, open to whom."""

from __future__ import annotations

import os
import socket
from typing import Final

from proxy.clients import address_of
from proxy.errors import OperationalError
from proxy.settings import Settings

_BACKLOG: Final = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket on an address or name; port 0 lets the system choose.

    Raises OperationalError that says what is wrong with the address.
    """
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise OperationalError(f"cannot listen on {place}: {reason}") from None
    # A name may stand for both families; IPv4 is what reverse proxies in front of us try first.
    family, _, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    try:
        listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    except OSError as error:
        raise OperationalError(f"cannot listen on {place}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
    except OSError as error:
        listener.close()
        raise OperationalError(f"cannot listen on {place}: {error.strerror}") from None
    return listener


def place_of(listener: socket.socket) -> dict[str, str | int]:
    """Where it listens, as the log has it."""
    if listener.family == socket.AF_UNIX:
        return {"socket": os.fsdecode(listener.getsockname())}
    host, port = listener.getsockname()[:2]
    return {"host": host, "port": port}


def serves_anything_to_anyone(settings: Settings, host: str) -> bool:
    """Whether the operator named no feeds, although others than this host may ask at the address `host`."""
    address = address_of(host)
    beyond = address is None or not address.is_loopback or settings.public_url is not None
    return beyond and settings.actors is None
