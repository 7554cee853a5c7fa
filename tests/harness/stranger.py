"""Servers and names of strangers: what a hostile one answers, and where its name leads this time."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence

from harness.pds import BodyServer

# Where strangers live in tests: to the guard it is a network that the operator allows. What must never be
# contacted listens beside it.
STRANGERS = ipaddress.ip_network("127.0.0.1/32")
INSIDE = "127.0.0.2"


class Stranger(BodyServer):
    """A server whose answers a test decides; `requests` and `connections` are what reached it.

    `unsized`: it does not say how long its bodies are, and they have no end.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__()
        self.listens_on = host
        self.connections = 0
        self.unsized = False

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def _serve(self, reader, writer) -> None:
        self.connections += 1
        await super()._serve(reader, writer)

    async def _send(self, writer, request, response) -> bool:
        if not self.unsized:
            return await super()._send(writer, request, response)
        writer.write(f"HTTP/1.1 {response.status} OK\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        while True:
            writer.write(b"%x\r\n%s\r\n" % (len(response.body), response.body))
            await writer.drain()


@contextlib.asynccontextmanager
async def strangers() -> AsyncIterator[tuple[Stranger, Stranger]]:
    """A stranger's server, and one of the inside, which it would like to reach through us."""
    async with Stranger() as outside, Stranger(INSIDE) as inside:
        yield outside, inside


class Names:
    """A name server: each look-up of a name takes the next of its answers, the last one for ever."""

    def __init__(self, names: dict[str, list[Sequence[str]]]) -> None:
        self._names = {name: list(answers) for name, answers in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        answers = self._names.get(host)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]
