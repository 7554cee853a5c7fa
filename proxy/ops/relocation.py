"""Another store for the queue: refused at the start while posts wait in the old one; `feedproxy move`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr
from redis.exceptions import RedisError

from proxy.address import parse_address
from proxy.clock import Clock, SystemClock
from proxy.errors import OperationalError, UsageError
from proxy.ops import move
from proxy.settings import Settings
from proxy.store.places import opened
from proxy.store.residence import EMBEDDED, Place, Residence, place_of


def check_switch(settings: Settings) -> None:
    """Raises OperationalError if posts wait, or may wait, in another store than that of the settings."""
    now, before = place_of(settings).name, Residence(settings.data_dir).known()
    if before is not None and before != now:
        waiting = asyncio.run(_waiting(settings, before, SystemClock()))
        if waiting != 0:
            what = "what may still wait" if waiting is None else f"{waiting} posts that wait"
            raise OperationalError(
                f"the queue has been in {before} so far, and the settings name {now}. Carry over {what} "
                f"there by `feedproxy move --from {before}` (with its login, if it has one), or leave it "
                "there by `feedproxy move --abandon`"
            )


def run(settings: Settings, *, source: str | None, target: str | None, as_json: bool) -> None:
    """`feedproxy move`: carry everything, show how far it is, and remember where it is then."""
    residence = Residence(settings.data_dir)
    to = place_of(settings) if target is None else _named(settings, target)
    if source is None:
        source = residence.known() or EMBEDDED
        if source == to.name:
            raise UsageError(
                "name the store to move from: --from embedded, a URL, or file: and a path to one"
            )
    start = _named(settings, source)
    with _progress(quiet=as_json) as progress:
        moved = asyncio.run(
            move.move(
                start,
                to,
                SystemClock(),
                namespace=settings.namespace,
                lease_s=settings.lease_s,
                progress=progress,
            )
        )
    residence.note(to.name)
    sys.stdout.write(f"{move.shown(moved, as_json=as_json)}\n")


def abandon(settings: Settings) -> None:
    """`feedproxy move --abandon`: go on with the store of the settings, whatever another one holds."""
    place = place_of(settings)
    asyncio.run(move.call_off(place, SystemClock(), namespace=settings.namespace))
    Residence(settings.data_dir).note(place.name)


async def _waiting(settings: Settings, store: str, clock: Clock) -> int | None:
    """How many deliveries wait in a store that is known by its name alone; None if it does not say."""
    place = _named(settings, store)
    prefix = move.prefix_of(settings.namespace)
    try:
        async with opened(place, clock, key=prefix) as client:
            return await move.waiting_in(client, prefix)
    except (OperationalError, RedisError, OSError):
        if place.url is None:  # its error says what to do
            raise
        return None


def _named(settings: Settings, text: str) -> Place:
    """What --from or --to says. Raises UsageError."""
    if text == EMBEDDED:
        return replace(place_of(settings), url=None)
    if text.startswith("file:"):
        try:
            text = Path(text.removeprefix("file:")).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"{text.removeprefix('file:')} cannot be read") from None
    try:
        parse_address(text)
    except ValueError as error:
        raise UsageError(f"the address of the store {error}; or say embedded, or file: and a path") from None
    return replace(place_of(settings), url=SecretStr(text))


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[move.Progress]:
    """A bar where a person watches."""
    # `serve`, which asks whether it may start here, does without.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("keys", total=None)
        yield lambda total, more: bar.update(task, total=total, advance=more)
