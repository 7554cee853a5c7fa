"""nginx and Caddy with the examples of deploy/, on ports of their own, and clients from several addresses."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from harness.waiting import until_true

DEPLOY = Path(__file__).parents[2] / "deploy"
HOSTS = ("feeds.example", "blog.example")


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A TLS server before feedproxy and a CMS."""

    port: int
    tls: ssl.SSLContext

    @contextlib.contextmanager
    def client(
        self, host: str, *, source: str | None = None, ipv6: bool = False, timeout_s: float = 30
    ) -> Iterator[httpx.Client]:
        """Someone who asks `host`, from the address `source` of this machine."""
        transport = httpx.HTTPTransport(verify=self.tls, local_address=source)
        address = "[::1]" if ipv6 else "127.0.0.1"
        with httpx.Client(
            transport=transport,
            base_url=f"https://{address}:{self.port}",
            headers={"host": host},
            timeout=timeout_s,
        ) as client:
            client.event_hooks["request"].append(lambda request: _name(request, host))
            yield client


def _name(request: httpx.Request, host: str) -> None:
    request.extensions["sni_hostname"] = host


class _Echo(BaseHTTPRequestHandler):
    """Answers with the path and the headers of what came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"path": self.path, "headers": dict(self.headers.items())}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def echo() -> Iterator[int]:
    """The port of a server that tells what it was asked: a CMS, or an API."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextlib.contextmanager
def nginx(directory: Path, feedproxy: int, cms: int, more: str = "") -> Iterator[Edge]:
    """nginx with what is in deploy/nginx, and `more` for all servers."""
    directory.chmod(0o755)  # its workers are somebody else's
    certificate, key, tls = _certificate(directory)
    port = _free_port()
    parts = []
    for source in sorted((DEPLOY / "nginx").glob("*.conf")):
        text = source.read_text(encoding="utf-8")
        text = text.replace("[::]:443", f"[::1]:{port}").replace("listen 443", f"listen 127.0.0.1:{port}")
        text = re.sub(r"/etc/letsencrypt/\S+/fullchain.pem", str(certificate), text)
        text = re.sub(r"/etc/letsencrypt/\S+/privkey.pem", str(key), text)
        text = text.replace("127.0.0.1:8080", f"127.0.0.1:{feedproxy}").replace(":8000", f":{cms}")
        (directory / source.name).write_text(text.replace("/etc/nginx", str(directory)), encoding="utf-8")
        if source.name != "feedproxy-locations.conf":
            parts.append(f"include {directory / source.name};")
    temporary = (f"{name}_temp_path {directory / name};" for name in ("client_body", "proxy", "fastcgi"))
    others = (f"{name}_temp_path {directory / name};" for name in ("uwsgi", "scgi"))
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/nginx.pid; error_log stderr notice; events {{}}\n"
        f"http {{ access_log off; {' '.join((*temporary, *others, more, *parts))} }}\n",
        encoding="utf-8",
    )
    # Quitting takes as long as the slowest client.
    with _running(
        ["/usr/sbin/nginx", "-c", str(directory / "nginx.conf"), "-p", str(directory)], directory, port
    ):
        yield Edge(port=port, tls=tls)


@contextlib.contextmanager
def caddy(directory: Path, feedproxy: int, cms: int) -> Iterator[Edge]:
    """Caddy with deploy/caddy/Caddyfile."""
    certificate, key, tls = _certificate(directory)
    port = _free_port()
    text = (DEPLOY / "caddy" / "Caddyfile").read_text(encoding="utf-8")
    for host in HOSTS:
        tested = f"https://{host}:{port} {{\n\tbind 127.0.0.1 ::1\n\ttls {certificate} {key}\n"
        text = re.sub(rf"^{re.escape(host)} {{\n", lambda _: tested, text, flags=re.MULTILINE)  # noqa: B023
    text = text.replace("127.0.0.1:8080 {", f"127.0.0.1:{feedproxy} {{").replace(":8000", f":{cms}")
    options = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"
    (directory / "Caddyfile").write_text(options + text, encoding="utf-8")
    with _running(["caddy", "run", "--config", str(directory / "Caddyfile")], directory, port):
        yield Edge(port=port, tls=tls)


@contextlib.contextmanager
def _running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    homes = {name: str(directory) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=log)
    try:
        until_true(lambda: _listens(process, directory, port), f"{command[0]} listens")
        yield
    finally:
        process.terminate()
        process.wait(30)


def _listens(process: subprocess.Popen[bytes], directory: Path, port: int) -> bool:
    assert process.poll() is None, (directory / "log").read_text(encoding="utf-8")
    with contextlib.suppress(OSError), socket.create_connection(("::1", port), timeout=1):
        return True
    return False


def _certificate(directory: Path) -> tuple[Path, Path, ssl.SSLContext]:
    """A certificate for HOSTS, its key, and what trusts nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTS[0])])
    now = dt.datetime.now(dt.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in HOSTS]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    tls = ssl.create_default_context(cafile=str(paths[0]))
    return *paths, tls


def _free_port() -> int:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        return int(listener.getsockname()[1])
