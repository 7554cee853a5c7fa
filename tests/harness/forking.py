"""The script behind a nursery: for each line of stdin it forks a `feedproxy worker`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any


def _fork_on_demand() -> None:
    """Answer each line of stdin with the pid of a new worker; end them all when stdin closes."""
    # The children find loaded what they need.
    import anyio._backends._asyncio
    import anyio.streams.tls  # noqa: F401

    from proxy import cli, runtime, settings  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    pids = []
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            _become_worker(cli.main, **json.loads(line))
        pids.append(pid)
        print(pid, flush=True)  # noqa: T201
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _become_worker(main: Any, environ: Mapping[str, str], log: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["feedproxy", "worker"]
    code = 70
    try:
        main()
    except SystemExit as exited:
        code = exited.code if isinstance(exited.code, int) else 0 if exited.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _fork_on_demand()
