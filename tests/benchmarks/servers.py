"""What is measured: feedproxy and its peers, each a process group of its own on loopback.

nginx and Varnish are Debian's (packages nginx-light and varnish), started here with configurations of their
own, in memory (/dev/shm).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.waiting import until_true

NGINX = """
worker_processes {workers}; daemon off; error_log stderr crit; pid {dir}/pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
  open_file_cache max=1000 inactive=60s;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  proxy_cache_path {dir}/cache keys_zone=feeds:10m use_temp_path=off;
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache feeds; proxy_cache_valid 200 {ttl_s}s; proxy_cache_lock on;
      proxy_cache_background_update on;
      proxy_cache_use_stale updating error timeout http_500 http_502 http_503 http_504;
    }}
  }}
}}
"""

VARNISH = """
vcl 4.1;
backend origin {{ .host = "127.0.0.1"; .port = "{origin}"; }}
sub vcl_backend_response {{
  if (beresp.status == 200 && beresp.http.Cache-Control !~ "no-store") {{
    set beresp.ttl = {ttl_s}s; set beresp.grace = 1d;
  }}
}}
"""


# Where there are two processors: that of the servers, and that of the load and the origin.
SERVER_CPU, LOAD_CPU = ("0", "1") if (os.cpu_count() or 1) > 1 else (None, None)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: `pids` are all of its processes."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def pids(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]

    def cpu_s(self) -> float:
        """Processor time that its processes have taken."""
        ticks = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> list[int]:
        """Resident memory of each process but those that only wait for others."""
        sizes = []
        for pid in self.pids:
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                sizes.append(pages * os.sysconf("SC_PAGE_SIZE") // 2**20)
        return sizes


def descendants(pid: int) -> list[int]:
    """The processes that `pid` started, and theirs."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def load_from_here() -> None:
    """Keep this process, and what it starts from now on unless told otherwise, on LOAD_CPU."""
    if LOAD_CPU is not None:
        os.sched_setaffinity(0, {int(LOAD_CPU)})


def free_port() -> int:
    """A port on loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def get(port: int, target: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("GET", target, headers=dict(headers or {}))
        answer = client.getresponse()
        return answer.status, answer.read()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory, gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="feedproxy-bench-", dir="/dev/shm"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int,
    *,
    cpus: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server, from its first answer on `port` to its end; on the processors `cpus` alone if given."""
    pinned = ["taskset", "-c", cpus, *command] if cpus else list(command)
    process = subprocess.Popen(
        pinned, env={**_environ(), **(env or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        _await_listening(process, port)
        yield Server(name, port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environ() -> dict[str, str]:
    """That of this process; as where it is installed, what was compiled once stays compiled."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _await_listening(process: subprocess.Popen[bytes], port: int) -> None:
    def listens() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        with socket.create_connection(("127.0.0.1", port), 1):
            return True

    until_true(listens, f"{process.args} listens", faults=(OSError,))


def await_quiet(server: Server) -> None:
    """Wait until all that starts beside the listener has started: for half a second it takes no time."""
    spent_s = [server.cpu_s()]

    def rests() -> bool:
        spent_s.append(server.cpu_s())
        return spent_s[-1] - spent_s[-2] <= 0.02

    time.sleep(0.5)  # the pause over which it is judged
    until_true(rests, f"{server.name} rests", deadline_s=60, every_s=0.5)


@contextlib.contextmanager
def origin() -> Iterator[Server]:
    """The origin of all."""
    port = free_port()
    with running("origin", [sys.executable, "-m", "tests.benchmarks.origin", str(port)], port) as server:
        yield server


def asked(origin: Server, targets: Iterable[str]) -> tuple[int, float]:
    """How often the origin was asked for any of `targets`, and how soon again for the same, in seconds."""
    told = json.loads(get(origin.port, "/requests")[1])
    apart_s = [told["apart_s"][target] for target in targets if target in told["apart_s"]]
    return sum(told["requests"].get(target, 0) for target in targets), min(apart_s, default=math.inf)


@contextlib.contextmanager
def feedproxy(
    origin: Server,
    *,
    workers: int = 1,
    cpus: str | None = None,
    settle: bool = True,
    scripts: Path = Path(sys.executable).parent,
    **more: object,
) -> Iterator[Server]:
    """`feedproxy serve` on the embedded store, with a budget that does not limit what is measured.

    `settle`: wait until all of its processes have started, not only until it is ready. `scripts`: where the
    command is installed.
    """
    port = free_port()
    with scratch() as directory:
        given = {
            "UPSTREAM": f"http://127.0.0.1:{origin.port}",
            "DATA_DIR": directory,
            "PORT": port,
            "WORKERS": workers,
            "UPSTREAM_RPS": 10_000,
            "UPSTREAM_BURST": 1000,
            "CLIENT_EXEMPT": "127.0.0.0/8",
            "UPSTREAM_CONCURRENCY": 50,
            "LOG_LEVEL": "error",
            **more,
        }
        env = {f"FEEDPROXY_{name}": str(value) for name, value in given.items()}
        command = [str(scripts / "feedproxy"), "serve"]
        with running("feedproxy", command, port, cpus=cpus, env=env) as server:
            until_true(lambda: get(port, "/readyz")[0] == 200, "it is ready", every_s=0.005)
            if settle:
                await_quiet(server)
            yield server


@contextlib.contextmanager
def nginx(origin: Server, *, workers: int = 1, cpus: str | None = None, ttl_s: int = 600) -> Iterator[Server]:
    """nginx with its cache in memory and its files kept open."""
    port = free_port()
    with scratch() as directory:
        config = directory / "conf"
        config.write_text(
            NGINX.format(dir=directory, workers=workers, origin=origin.port, port=port, ttl_s=ttl_s)
        )
        directory.chmod(0o777)
        with running("nginx", ["/usr/sbin/nginx", "-c", str(config)], port, cpus=cpus) as server:
            yield server


@contextlib.contextmanager
def varnish(origin: Server, *, cpus: str | None = None, ttl_s: int = 600) -> Iterator[Server]:
    """Varnish with its cache in memory. It keeps each coding, and does not unpack one for each hit."""
    port = free_port()
    with scratch() as directory:
        config = directory / "vcl"
        config.write_text(VARNISH.format(origin=origin.port, ttl_s=ttl_s))
        command = [
            *("/usr/sbin/varnishd", "-F", "-n", str(directory / "n")),
            *("-a", f"127.0.0.1:{port}", "-f", str(config), "-s", "malloc,256m"),
            *("-p", "thread_pool_min=100", "-p", "thread_pools=1", "-p", "http_gzip_support=off"),
        ]
        with running("Varnish", command, port, cpus=cpus) as server:
            yield server


@contextlib.contextmanager
def constant(kind: str, body: bytes, *, cpus: str | None = None) -> Iterator[Server]:
    """A server that only answers `body`; see constants.py."""
    port = free_port()
    with scratch() as directory:
        file = directory / "body"
        file.write_bytes(body)
        name = {"protocol": "uvloop, a constant", "asgi": "uvicorn, bare ASGI"}[kind]
        command = [sys.executable, "-m", "tests.benchmarks.constants", kind, str(port), str(file)]
        with running(name, command, port, cpus=cpus) as server:
            yield server
