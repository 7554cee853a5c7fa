"""A `serve` whose children are this file: just enough to see what the supervisor does with them.

`GET` of anything answers with the process's pid, how many are ready, and its settings; 503 until all are.
Run as `standin.py serve` (settings from the environment), which runs `standin.py web --control-fd=N`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys

from proxy.control import ControlChannel, receive_beginning
from proxy.settings import load_settings
from proxy.supervisor import serve
from proxy.telemetry import configure_logging


async def web(listen_fd: int, control_fd: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    hangups: list[int] = []
    if "STANDIN_IGNORES_SIGTERM" not in os.environ:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGHUP, hangups.append, 1)

    async with ControlChannel(control_fd) as control:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            facts = {
                "pid": os.getpid(),
                "ready": control.ready,
                "expected": control.expected,
                "hangups": len(hangups),
                "environ": {
                    name: value for name, value in os.environ.items() if name.startswith("FEEDPROXY_")
                },
            }
            body = json.dumps(facts).encode()
            status = b"200 OK" if control.complete else b"503 Service Unavailable"
            writer.write(
                b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body))
            )
            writer.write(body)
            writer.close()

        while os.path.exists(os.environ.get("STANDIN_HOLD", "")):  # noqa: ASYNC110, ASYNC240, PTH110
            await asyncio.sleep(0.01)
        server = await asyncio.start_server(answer, sock=socket.socket(fileno=listen_fd))
        await control.send_ready()
        orphaned = asyncio.create_task(control.wait_closed())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([orphaned, stopped], return_when=asyncio.FIRST_COMPLETED)
        if orphaned.done():
            os._exit(1)
        orphaned.cancel()
        server.close()


async def worker(control_fd: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with ControlChannel(control_fd) as control:
        await control.send_ready()
        orphaned = asyncio.create_task(control.wait_closed())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([orphaned, stopped], return_when=asyncio.FIRST_COMPLETED)
        if orphaned.done():
            os._exit(1)
        orphaned.cancel()


def main() -> None:
    if sys.argv[1] == "serve":
        settings = load_settings(os.environ)
        configure_logging(settings, role="supervisor")
        serve(settings, os.environ, child_command=(sys.executable, "-P", __file__))
        return
    control_fd = int(sys.argv[2].removeprefix("--control-fd="))
    told = receive_beginning(control_fd)
    assert told is not None
    os.environ.update(told.environ)
    asyncio.run(worker(control_fd) if sys.argv[1] == "worker" else web(told.fds["listen"], control_fd))


if __name__ == "__main__":
    main()
