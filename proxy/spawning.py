"""How a child process is started: it loads its modules, and waits to be told over a socket what to do.

Nothing is imported here that takes time, as `serve` starts its first child before it loads itself.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

# -P: a directory called `proxy` where the operator happens to stand is not ours.
CHILD_COMMAND = (sys.executable, "-P", "-m", "proxy.child")
# What a service manager means for one process; its children are not to take it for theirs.
OURS_ALONE = frozenset(
    {"LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}
)
OPEN_FILES_MAX = 65_536


class Spawned:
    """A child process, and our end of its control channel; it ends when that is closed."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.process = process
        self.control = control


def spawn(command: Sequence[str], role: str, environ: Mapping[str, str]) -> Spawned:
    """Start `command` with its role and its end of the control channel. Raises OSError."""
    raise_open_files_limit()
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [*command, role, f"--control-fd={theirs.fileno()}"],
                env={name: value for name, value in environ.items() if name not in OURS_ALONE},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # A terminal's Ctrl-C comes to us alone, and we decide in which order things end.
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        raise
    return Spawned(process, ours)


@contextlib.contextmanager
def started_ahead(environ: Mapping[str, str]) -> Iterator[Spawned | None]:
    """A web process that loads its modules while we load ours; gone when the block is left.

    None where it cannot be started: whoever then needs one has the same trouble, and says so.
    """
    try:
        child = spawn(CHILD_COMMAND, "web", environ)
    except OSError:
        yield None
        return
    try:
        yield child
    finally:
        child.control.close()
        child.process.kill()
        child.process.wait()


def raise_open_files_limit() -> None:
    """Let this process and its children have as many connections as the host's administrator allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    # macOS says "unlimited" and refuses what is above a limit of its kernel; its own limit then stays.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
