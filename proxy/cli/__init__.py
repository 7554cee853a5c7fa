"""The command `feedproxy`. Exit codes: 0 done, 1 failed or found trouble, 2 wrong use.

Nothing is loaded here that takes time: what `serve` begins with goes on beside its loading.
"""

# ruff: noqa: PLC0415 - that is what the import inside the function is for

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from typing import NoReturn

from proxy.errors import FeedproxyError, UsageError
from proxy.spawning import Spawned, started_ahead


def main() -> None:
    """The command `feedproxy`."""
    # Most of the work is to load modules, which makes no garbage: it is looked for less often.
    gc.set_threshold(50_000)
    with contextlib.ExitStack() as stack:
        ahead: Spawned | None = None
        if sys.argv[1:2] == ["serve"] and not {"-h", "--help"} & set(sys.argv):
            # Told to stop before there is anything to stop. In the middle of an import, exceptions get lost.
            signal.signal(signal.SIGTERM, lambda *_: _leave(ahead, 0))
            signal.signal(signal.SIGINT, lambda *_: _leave(ahead, 130))
            signal.signal(signal.SIGHUP, lambda *_: None)  # not SIG_IGN, which children would inherit
            ahead = stack.enter_context(started_ahead(os.environ))
        try:
            from proxy.cli.commands import app

            app(obj=ahead)
        except FeedproxyError as error:
            sys.stderr.write(f"feedproxy: {error}\n")
            sys.exit(2 if isinstance(error, UsageError) else 1)


def _leave(ahead: Spawned | None, code: int) -> NoReturn:
    if ahead is not None:
        with contextlib.suppress(OSError):
            os.kill(ahead.process.pid, signal.SIGKILL)
            os.waitpid(ahead.process.pid, 0)
    os._exit(code)
