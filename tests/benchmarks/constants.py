"""Servers that do nothing but answer: `python -m tests.benchmarks.constants protocol|asgi PORT FILE`.

"protocol" writes a constant for whatever it receives: no server in this language on this machine is faster.
"asgi" is uvicorn with an application of two sends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvicorn
import uvloop


def constant(response: bytes) -> type[asyncio.Protocol]:
    class Constant(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, _data):
            self.transport.write(response)

    return Constant


def application(body: bytes):
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [
            (b"content-type", b"application/json; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
        ],
    }
    end = {"type": "http.response.body", "body": body}

    async def app(_scope, _receive, send):
        await send(start)
        await send(end)

    return app


async def serve_constant(port: int, body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: %d\r\n\r\n"
    protocol = constant(head % len(body) + body)
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    kind, port, file = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if kind == "protocol":
        uvloop.run(serve_constant(port, file.read_bytes()))
    else:
        uvicorn.run(
            application(file.read_bytes()), host="127.0.0.1", port=port, log_level="error", lifespan="off",
            loop="uvloop", http="httptools", ws="none", access_log=False, server_header=False,
        )  # fmt: skip
