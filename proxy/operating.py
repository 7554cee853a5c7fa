"""What a command of an operator is made of: the store where it is, and what may be done to it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from pydantic import SecretStr

from proxy.bluesky.identity import Identities
from proxy.bluesky.transport import DeadlineTransport
from proxy.bluesky.wire import Wire
from proxy.clock import Clock
from proxy.composition.common import client_of, store_of
from proxy.composition.syndicating import Syndication, syndicating
from proxy.errors import OperationalError, PdsError, StoreRefused, StoreUnavailable
from proxy.feeds.policy import longest_life_s
from proxy.feeds.purge import Purges, log_key_of
from proxy.feeds.shared import channel_of
from proxy.observing import Process
from proxy.settings import Settings
from proxy.store.datadir import socket_path, socket_url
from proxy.store.link import Link
from proxy.store.news import News
from proxy.syntax import is_did

# A command has time.
_PATIENCE_S = 5.0


def reachable(settings: Settings) -> Settings:
    """`settings` with the store's address, that of the embedded one if there is no other.

    Raises OperationalError when the embedded store is not up.
    """
    if settings.redis_url is not None:
        return settings
    path = socket_path(settings.data_dir)
    _knock(path, settings.data_dir)
    return settings.model_copy(update={"redis_url": SecretStr(socket_url(path))})


@contextlib.asynccontextmanager
async def operating(
    settings: Settings, clock: Clock, environ: Mapping[str, str]
) -> AsyncIterator[Syndication]:
    """The queue and its accounts. Raises OperationalError when the store does not answer, or refuses."""
    with _plainly_told():
        instruments = Process().instruments(clock)
        async with syndicating(
            reachable(settings), clock, environ, instruments, lambda _names: None, prepare=False
        ) as posts:
            yield posts


@contextlib.asynccontextmanager
async def purging(settings: Settings, clock: Clock) -> AsyncIterator[Purges]:
    """What declares cached answers dead, in all processes. Raises OperationalError as `operating`."""
    settings = reachable(settings)
    with _plainly_told():
        async with contextlib.AsyncExitStack() as stack:
            store = store_of(settings, clock)
            stack.push_async_callback(store.aclose)
            link = Link(store, patience_s=_PATIENCE_S)
            stack.push_async_callback(link.aclose)
            news = News(store.listen, channel_of(settings))
            yield Purges(link, news, log_key=log_key_of(settings), keep_s=longest_life_s(settings))


async def known_as(settings: Settings, clock: Clock, actor: str) -> Mapping[str, str]:
    """The DID behind `actor` by its handle; nothing if it is a DID, or if nobody can say."""
    if is_did(actor):
        return {}
    async with client_of(settings, DeadlineTransport(clock, max_connections=1)) as client:
        wire = Wire(client, clock)
        identities = Identities(wire, clock, plc_url=settings.plc_url, resolver_url=settings.upstream)
        deadline = clock.steady() + settings.upstream_timeout
        try:
            return {actor.lower(): await identities.did_of(actor.lower(), service=None, deadline=deadline)}
        except PdsError:
            return {}


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


@contextlib.contextmanager
def _plainly_told() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        raise OperationalError(f"the store does not answer ({error}): see that it runs") from error
    except StoreRefused as error:
        raise OperationalError(f"the store refuses: {error}") from error
