"""One HTTP connection to a web server without sockets: what is received chunk by chunk, what is written."""

from __future__ import annotations

import asyncio

from proxy.edge import EdgeProtocol
from proxy.web_server import WebServer


def is_owed(protocol: EdgeProtocol) -> bool:
    """Whether an answer is due on its connection, for which there need be no task."""
    cycle = protocol.cycle
    return not (cycle is None or cycle.response_complete or protocol.transport.is_closing())


class Wire(asyncio.Transport):
    """The transport of one connection, and the client at its other end.

    A client that does not read lets what is written pile up in `unread`; the protocol is told to pause at
    64 KiB, as by a socket.
    """

    HIGH_WATER_BYTES = 65_536

    def __init__(self, server: WebServer, *, reads: bool = True) -> None:
        super().__init__()
        config, state = server.config, server.server_state
        if not config.loaded:
            config.load()
        self.sent = bytearray()
        self.reads = reads
        self.unread_bytes = 0
        self.paused = False
        self.aborted = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._written = self._loop.create_future()  # something, the next time
        self.protocol = config.http_protocol_class(config=config, server_state=state, app_state={})
        self.protocol.connection_made(self)

    async def send(self, *chunks: bytes) -> bytes:
        """Deliver `chunks`, each in a read of its own, with their answers; everything written so far."""
        for chunk in chunks:
            if not self._closing:
                self.protocol.data_received(chunk)
            await self.quiet()
        return bytes(self.sent)

    async def quiet(self) -> None:
        """Wait until no request is being worked on."""
        async with asyncio.timeout(20):
            while not self.paused and (self.protocol.tasks or is_owed(self.protocol)):
                await asyncio.wait(self.protocol.tasks or [self._written])
                await asyncio.sleep(0)

    def end(self, error: Exception | None = None) -> None:
        """The client goes away, by a reset if there is an `error`."""
        self._closing = True
        self.protocol.connection_lost(error)

    def write(self, data: bytes) -> None:
        if self._closing:
            return
        self.sent += data
        self._written.set_result(None)
        self._written = self._loop.create_future()
        if not self.reads:
            self.unread_bytes += len(data)
            if self.unread_bytes > self.HIGH_WATER_BYTES and not self.paused:
                self.paused = True
                self.protocol.pause_writing()

    def writelines(self, list_of_data: object) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = self.aborted = True

    def pause_reading(self) -> None:
        """Chunks are delivered one by one: there is nothing to hold back."""

    def resume_reading(self) -> None:
        """See pause_reading."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("127.0.0.1", 4711), "sockname": ("127.0.0.1", 8080)}.get(name, default)
