"""What a server's start is measured by."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bench.ready import metrics
from tests.brokers import free_port


class Handler(BaseHTTPRequestHandler):
    """A server's metrics."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'# HELP a of it\na 1.5\nb{x="y"} 2\n')

    def log_message(self, *_arguments: object) -> None:
        return


def test_no_proxy_is_asked_for_a_servers_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.timeout = 10
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        try:
            assert metrics(server.server_port) == {"a": 1.5}
        finally:
            thread.join()
