"""What processes tell each other, as it is heard."""

from __future__ import annotations

import asyncio

from harness.waiting import until
from proxy.feeds.purge import Purges
from proxy.store.news import News


async def test_what_is_not_understood_is_passed_over():
    texts = (b"", b"1", b"1 purge", b"1 purge 0", b"1 purge x y z", b"2 purge 0 3 a", b"1 new x", b"\xff")

    async def listen(_channel):
        for text in (None, *texts, b"1 purge 0 7 a"):
            yield text
        await asyncio.Event().wait()

    news = News(listen, "channel")
    purges = Purges(None, news, log_key="log", keep_s=1.0)
    listening = asyncio.create_task(news.listen())
    assert await until(lambda: listening.done() or purges.known == 7)
    assert not listening.done()
    assert news.standing
    assert purges.floor(["a"]) == 7
    listening.cancel()
    await asyncio.wait({listening})
    assert not news.standing, "nobody listens any more"
