"""How a command comes to the queue: settings, store, an event loop for as long as it takes."""

# ruff: noqa: PLC0415 - see proxy/cli/__init__.py

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from proxy.composition.syndicating import Syndication
    from proxy.settings import Settings
    from proxy.syndication.controls import Controls

T = TypeVar("T")


class Desk:
    """What a command works with."""

    def __init__(self, settings: Settings, posts: Syndication, controls: Controls) -> None:
        self.settings = settings
        self.posts = posts
        self.controls = controls

    def known_account(self, name: str) -> str:
        """`name`, if it is one of feedproxy.toml. Raises UsageError."""
        from proxy.errors import UsageError

        known = self.posts.book.current.accounts
        if name not in known:
            listed = ", ".join(known) or "none"
            raise UsageError(f"{name!r} is no account of feedproxy.toml, which has: {listed}")
        return name


def at_desk(work: Callable[[Desk], Awaitable[T]]) -> T:
    """What `work` makes of the queue. Raises OperationalError when the store cannot be reached."""
    settings = loaded_settings()

    from proxy.clock import SystemClock
    from proxy.operating import operating

    async def run() -> T:
        clock = SystemClock()
        async with operating(settings, clock, os.environ) as posts:
            return await work(Desk(settings, posts, posts.controls(clock)))

    return asyncio.run(run())


def loaded_settings() -> Settings:
    """The settings in effect; log lines of this process go to stderr, errors only."""
    from proxy.settings import load_settings
    from proxy.telemetry import configure_logging

    settings = load_settings(os.environ)
    configure_logging(settings.model_copy(update={"log_level": "error"}), role="command")
    return settings
