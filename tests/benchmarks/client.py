"""A client that costs little: raw connections, one question at a time on each, asked when they are due."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# An answer that takes longer never comes.
PATIENCE_S = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answered:
    """How a question went: when it was due (monotonic), and how long after that its answer was there."""

    target: str
    due_at: float
    took_s: float
    status: int


class Connection:
    """One connection to a server on loopback."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._asked = ("", 0.0)

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, target: str, due_at: float | None = None) -> None:
        self._asked = (target, time.monotonic() if due_at is None else due_at)
        self._received = b""
        self._socket.sendall(f"GET {target} HTTP/1.1\r\nHost: bench.test\r\n\r\n".encode())

    def read(self) -> Answered | None:
        """The answer once it is whole. Raises EOFError or OSError when there is none."""
        data = self._socket.recv(1 << 16)
        if not data:
            raise EOFError
        self._received += data
        if not self._whole():
            return None
        target, due_at = self._asked
        return Answered(target, due_at, time.monotonic() - due_at, int(self._received[9:12]))

    def close(self) -> None:
        self._socket.close()

    def _whole(self) -> bool:
        head_bytes = self._received.find(b"\r\n\r\n") + 4
        if head_bytes < 4:
            return False
        length = _LENGTH.search(self._received, 0, head_bytes)
        if length is None:
            return self._received.endswith(b"\r\n0\r\n\r\n")  # in chunks; no feed has such a line
        return len(self._received) >= head_bytes + int(length[1])


@contextlib.contextmanager
def connections(ports: Iterable[int]) -> Iterator[list[Connection]]:
    """A connection to each of `ports`."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Connection(port))) for port in ports]


def paced(pool: Iterable[Connection], questions: Iterable[tuple[float, str]]) -> list[Answered]:
    """Ask each question at its time in seconds from now, whether or not others have their answers.

    One for which no connection is free waits for one, and that time counts. Those whose connection breaks
    have no answer. select(2) since its timer is exact: that of epoll is good to a millisecond.
    """
    idle, busy = deque(pool), dict[int, Connection]()
    waiting = deque(questions)
    answers = []
    start_at = time.monotonic()
    while busy or (waiting and idle):
        while waiting and idle and (due_at := start_at + waiting[0][0]) <= time.monotonic():
            connection = idle.popleft()
            connection.ask(waiting.popleft()[1], due_at)
            busy[connection.fileno()] = connection
        patience_s = start_at + waiting[0][0] - time.monotonic() if waiting and idle else PATIENCE_S
        readable = select.select(busy, (), (), max(0.0, patience_s))[0]
        if not readable and not (waiting and idle):
            raise TimeoutError(f"no answer within {PATIENCE_S:g} s")
        for number in readable:
            connection = busy[number]
            try:
                answer = connection.read()
            except (EOFError, OSError):
                del busy[number]
                continue
            if answer is not None:
                answers.append(answer)
                del busy[number]
                idle.append(connection)
    return answers


def all_good(answers: Sequence[Answered], count: int) -> None:
    """Raises RuntimeError unless there are `count`, none of them a refusal: those are quick."""
    statuses = {answer.status for answer in answers}
    if statuses != {200} or len(answers) != count:
        raise RuntimeError(f"{len(answers)} of {count} answered, with {sorted(statuses)}")


def percentile_ms(answers: Sequence[Answered], share: float) -> float:
    """The time in which that share of the answers came."""
    times = sorted(answer.took_s for answer in answers)
    return times[min(len(times) - 1, int(len(times) * share))] * 1000
