"""Where the store of a command is, and what a person is told when it does not do as asked."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from proxy.errors import OperationalError, StoreRefused, StoreUnavailable
from proxy.settings import Settings
from proxy.store.datadir import socket_path, socket_url


def reachable(settings: Settings) -> Settings:
    """`settings` with the store's address, that of the embedded one if there is no other.

    Raises OperationalError when the embedded store is not up.
    """
    if settings.redis_url is not None:
        return settings
    path = socket_path(settings.data_dir)
    _knock(path, settings.data_dir)
    return settings.model_copy(update={"redis_url": SecretStr(socket_url(path))})


@contextlib.contextmanager
def plainly_told() -> Iterator[None]:
    """Has errors of the store be OperationalError, in words for whoever runs a command."""
    try:
        yield
    except StoreUnavailable as error:
        raise OperationalError(f"the store does not answer ({error}): see that it runs") from error
    except StoreRefused as error:
        raise OperationalError(f"the store refuses: {error}") from error


def _knock(path: Path, data_dir: Path) -> None:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except PermissionError:
        raise OperationalError(f"the store of {data_dir} is another user's: do this as that user") from None
    except OSError:
        raise OperationalError(
            f"the embedded store answers while `feedproxy serve` runs, and there is none on {data_dir}; "
            "or set FEEDPROXY_REDIS_URL"
        ) from None
