"""What a service manager hands over and wants to hear: a listening socket, and how the service fares.

Sources: sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final

from proxy.errors import OperationalError, UsageError

FIRST_FD: Final = 3


def inherited_listener(environ: Mapping[str, str]) -> socket.socket | None:
    """The listening socket that this process was started with, None if it was started with none.

    Raises OperationalError when what was handed over is not exactly one such socket.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environ.get("LISTEN_FDS", "0")
    if count == "0":
        return None
    if count != "1":
        raise OperationalError(f"LISTEN_FDS={count}: give feedproxy one socket to listen on")
    try:
        listener = socket.socket(fileno=FIRST_FD)
    except OSError as error:
        raise OperationalError(f"LISTEN_FDS=1, and descriptor 3 is no socket: {error.strerror}") from None
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.close()
        raise OperationalError("LISTEN_FDS=1, and descriptor 3 is no listening socket")
    listener.set_inheritable(False)
    listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
    return listener


class ServiceManager:
    """Whoever has started this process and wants to know how it fares; without one, nothing is said."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises UsageError when the watchdog's time is no number."""
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog_s = _watchdog_s(environ) if self._address else None

    def ready(self) -> None:
        """Started, or done with reloading."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The configuration is read again; `ready` follows."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for people."""
        self._tell(f"STATUS={text}")

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Say that the loop turns, as often as is wanted, for as long as the block lasts."""
        if self._watchdog_s is None:
            yield
            return
        feeding = asyncio.create_task(self._feed(self._watchdog_s / 2), name="watchdog")
        try:
            yield
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])

    async def _feed(self, every_s: float) -> None:
        while True:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(every_s)

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the zero byte of Linux's abstract namespace.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # noqa: FBT003
            # A manager that is gone, or does not listen now, is no reason to fail.
            with contextlib.suppress(OSError):
                sender.sendto(message.encode(), address)


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    wanted = environ.get("WATCHDOG_USEC")
    if wanted is None or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not (wanted.isascii() and wanted.isdigit() and int(wanted) > 0):
        raise UsageError(f"WATCHDOG_USEC={wanted} is no number of microseconds")
    return int(wanted) / 1e6
