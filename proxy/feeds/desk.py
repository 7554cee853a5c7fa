"""The desk of the read path: a question comes in, a reply goes out, and is counted."""

from __future__ import annotations

from proxy.clients import Client
from proxy.clock import Clock
from proxy.errors import Rejected, UpstreamError
from proxy.feeds.actors import Actors
from proxy.feeds.counting import ReadTally
from proxy.feeds.key import FeedKey
from proxy.feeds.reply import Replies, Reply, Terms
from proxy.feeds.service import Answer, FeedService, Served


class Desk:
    """Replies to questions, however they came here."""

    def __init__(
        self, service: FeedService, actors: Actors, replies: Replies, reads: ReadTally, clock: Clock
    ) -> None:
        self._service = service
        self._actors = actors
        self._replies = replies
        self._reads = reads
        self._clock = clock

    async def reply(self, key: FeedKey, client: Client, terms: Terms) -> Reply:
        """The reply to `client`, who asks for `key`. Raises nothing: trouble is told in the reply."""
        asked_at = self._clock.steady()
        try:
            answer = await self._answer(key, client)
        except Rejected as error:
            return self.reject(error, key.nsid, terms, took_s=self._clock.steady() - asked_at)
        self._reads.answered(key.nsid, answer, self._clock.steady() - asked_at)
        if answer.held is None:
            assert answer.error is not None  # noqa: S101  (an answer has either)
            return self._replies.fail(answer, answer.error, key.nsid, terms)
        return self._replies.serve(answer, answer.held, key.nsid, terms)

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
