"""What is counted of reads: each once, by method and by what became of it."""

from __future__ import annotations

from typing import Final

from proxy.feeds.answer import Answer, Served
from proxy.tally import Tally

# hit, stale: from a copy. miss: the upstream was asked. collapsed: another had asked already. negative: a
# stored 400, 404 or 410. bypass: asked for, and not to be stored. error: there was nothing to answer with.
OUTCOMES: Final = ("hit", "stale", "miss", "collapsed", "negative", "error", "bypass")


def outcome_of(answer: Answer) -> str:
    """What became of a read, one of OUTCOMES."""
    match answer.served:
        case Served.HIT:
            return "negative" if answer.held is not None and answer.held.entry.negative else "hit"
        case Served.STALE_WHILE_REVALIDATE | Served.STALE_IF_ERROR:
            return "stale"
        case Served.ERROR:
            return "error"
        case Served.FORWARDED if not answer.stored:
            return "bypass"
        case Served.FORWARDED:
            return "collapsed" if answer.collapsed else "miss"


class ReadTally:
    """Counts reads in this process's place."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        # Of `cell`: what the shortest way adds to.
        self.cells = tally.cells

    def cell(self, nsid: str, answer: Answer) -> int:
        """Where answers like this one are counted."""
        return self._tally.cell("feedproxy_requests", nsid, outcome_of(answer))

    def answered(self, nsid: str, answer: Answer, took_s: float) -> None:
        """One more read of the method `nsid`."""
        self.cells[self.cell(nsid, answer)] += 1
        self._tally.observe("feedproxy_request_seconds", took_s, outcome_of(answer))

    def rejected(self, nsid: str | None, took_s: float) -> None:
        """A read that was no question, of a method that may not exist."""
        self._tally.add("feedproxy_requests", nsid or "", "error")
        self._tally.observe("feedproxy_request_seconds", took_s, "error")
