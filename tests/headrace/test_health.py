"""The containers' health check: 0 for an address that answers well, 1 for anything else."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from headrace.health import is_healthy
from headrace.recommendation import Server, ServerError
from tests.brokers import free_port

ROOT = Path(__file__).resolve().parents[2]


class Handler(BaseHTTPRequestHandler):
    """Answers /200 with 200, and so on."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        return


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_no_proxy_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker hands its own proxy settings to containers."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    command = [sys.executable, "-m", "headrace.health", f"{url}/200"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    with closing(Server(url)) as server, pytest.raises(ServerError, match="with 501"):
        server.recommend("u")


def test_only_a_good_answer_is_healthy(url: str) -> None:
    assert is_healthy(f"{url}/200")
    assert not is_healthy(f"{url}/404")
    assert not is_healthy(f"{url}/503")
    assert not is_healthy(f"http://127.0.0.1:{free_port()}/200")
    assert not is_healthy("nonsense")


def test_the_command_says_it_by_its_status(url: str) -> None:
    for path, status in (("200", 0), ("503", 1)):
        command = [sys.executable, "-m", "headrace.health", f"{url}/{path}"]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == status
