"""The desk of the read path: a question comes in, a reply goes out, and is counted."""

from __future__ import annotations

import functools
from typing import Final

from proxy.clients import Client, Trust
from proxy.clock import Clock
from proxy.errors import Rejected, UpstreamError
from proxy.feeds.actors import Actors
from proxy.feeds.answer import Answer, Served
from proxy.feeds.counting import ReadTally
from proxy.feeds.key import FeedKey
from proxy.feeds.reply import Replies, Reply, Terms
from proxy.feeds.service import FeedService

# Whose addresses are not looked at anew each time.
_MAX_CLIENTS: Final = 1024


class Desk:
    """Replies to questions, however they came here."""

    def __init__(
        self,
        service: FeedService,
        actors: Actors,
        replies: Replies,
        reads: ReadTally,
        trust: Trust,
        clock: Clock,
    ) -> None:
        self._service = service
        self._actors = actors
        self._replies = replies
        self._reads = reads
        self._clock = clock
        # Who asks, by the other end of the connection (None: a unix socket) and its X-Forwarded-For.
        self.client = functools.lru_cache(_MAX_CLIENTS)(functools.partial(_client_of, trust))

    async def reply(self, key: FeedKey, peer: str | None, forwarded: str | None, terms: Terms) -> Reply:
        """The reply to whoever asks for `key`. Raises nothing: trouble is told in the reply.

        `peer` and `forwarded` are as `client` takes them.
        """
        asked_at = self._clock.steady()
        try:
            answer = await self._answer(key, self.client(peer, forwarded))
        except Rejected as error:
            return self.reject(error, key.nsid, terms, took_s=self._clock.steady() - asked_at)
        self._reads.answered(key.nsid, answer, self._clock.steady() - asked_at)
        return self._replies.reply(answer, key.nsid, terms)

    def reject(self, error: Rejected, nsid: str | None, terms: Terms, *, took_s: float = 0.0) -> Reply:
        """The reply to what is no question."""
        self._reads.rejected(nsid, took_s)
        return self._replies.reject(error, nsid, terms)

    async def _answer(self, key: FeedKey, client: Client) -> Answer:
        """Raises Rejected."""
        try:
            await self._actors.check(key)
        except UpstreamError as error:
            return Answer(served=Served.ERROR, error=error)
        return await self._service.answer(key, client)


def _client_of(trust: Trust, peer: str | None, forwarded: str | None) -> Client:
    return trust.client_of(peer, [] if forwarded is None else [forwarded])
