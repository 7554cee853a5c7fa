"""What each worker does for the whole queue: move on what is due, take over from the dead, prove, forget."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.errors import StoreError
from proxy.syndication.queue import BATCH, JobQueue
from proxy.telemetry import get_logger

# How often to look, at most and at least; rounds between proofs and between sweeps.
SHORTEST_S: Final = 0.02
LONGEST_S: Final = 1.0
PROOF_EVERY_S: Final = 10.0
SWEEP_EVERY_S: Final = 60.0

_EMPTIED: Final = "what waited is gone, and so is every pause: pause again what is not to flow"

_log = get_logger()


async def keep_house(queue: JobQueue) -> None:
    """Go round until cancelled. Everything here may be done by any number of workers at once."""
    loop = asyncio.get_running_loop()
    proof_at = sweep_at = reap_at = mark_at = loop.time()
    cursor, mark, paused = "0", "", False
    while True:
        pause_s = LONGEST_S
        try:
            promoted = await queue.promote()
            if promoted.next_in_s is not None:
                pause_s = min(pause_s, max(SHORTEST_S, promoted.next_in_s))
            if loop.time() >= reap_at:
                reap_at = loop.time() + LONGEST_S
                await _reap(queue)
            if loop.time() >= mark_at:
                mark_at = loop.time() + LONGEST_S
                was_paused = paused
                mark, lost, paused = await queue.mark(mark)
                if lost:
                    _log.error("store_was_emptied", hint=_EMPTIED, everything_was_paused=was_paused)
            if loop.time() >= proof_at:
                cursor = await _prove(queue, cursor)
                proof_at = loop.time() + (PROOF_EVERY_S if cursor == "0" else LONGEST_S)
            if loop.time() >= sweep_at:
                sweep_at = loop.time() + (SWEEP_EVERY_S if await queue.sweep() < BATCH else SHORTEST_S)
                pause_s = min(pause_s, sweep_at - loop.time())
        except StoreError as error:
            _log.debug("housekeeping_failed", reason=str(error))
        await asyncio.sleep(max(pause_s, 0.0))


async def _reap(queue: JobQueue) -> None:
    for delivery in await queue.reap():
        _log.warning("delivery_taken_back", delivery=delivery)


async def _prove(queue: JobQueue, cursor: str) -> str:
    following, repairs = await queue.reconcile(cursor)
    for repair in repairs:
        _log.error("queue_repaired", repair=repair)
    return following
