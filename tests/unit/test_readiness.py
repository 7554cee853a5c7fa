"""What the health check of a container says."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from proxy.errors import OperationalError
from proxy.ops.readiness import check_ready


class Dual(HTTPServer):
    """On all addresses of both families."""

    address_family = socket.AF_INET6
    status = 200

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Dual(("::", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1", "::1", "localhost"])
def test_whoever_is_ready_is_found_at_the_address_it_listens_on(server, host):
    check_ready(host, server.server_port)


def test_whoever_is_not_ready_is_not(server):
    server.status = 503
    with pytest.raises(OperationalError, match="not ready: 503"):
        check_ready("0.0.0.0", server.server_port)


def test_nobody_is_not_ready():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(OperationalError, match=f"nothing answers on port {port}: "):
            check_ready("127.0.0.1", port)
