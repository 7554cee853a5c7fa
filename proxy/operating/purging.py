"""What declares cached answers dead, wherever they are."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from proxy.bluesky.identity import Identities
from proxy.bluesky.transport import DeadlineTransport
from proxy.bluesky.wire import Wire
from proxy.clock import Clock
from proxy.composition.common import client_of, store_of
from proxy.errors import PdsError
from proxy.feeds.policy import longest_life_s
from proxy.feeds.purge import Purges, log_key_of
from proxy.feeds.shared import channel_of
from proxy.operating.stores import plainly_told, reachable
from proxy.settings import Settings
from proxy.store.link import Link
from proxy.store.news import News
from proxy.syntax import is_did

# A command has time.
_PATIENCE_S = 5.0


@contextlib.asynccontextmanager
async def purging(settings: Settings, clock: Clock) -> AsyncIterator[Purges]:
    """What declares cached answers dead, in all processes. Raises OperationalError as `at_queue`."""
    settings = reachable(settings)
    with plainly_told():
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
