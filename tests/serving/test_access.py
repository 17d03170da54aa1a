"""Access control: tokens, their roles, what is open to everyone, and a token file that is wrong or changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.config import ServingConfig
from serving.http import access
from serving.http.access import Access
from serving.http.app import build_app
from tests.serving.inprocess import Client
from tests.serving.live import MANAGER, service_of
from wire.errors import ConfigError

READ, ADMIN = "a-token-that-reads", "a-token-that-administers"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.toml"
    file.write_text(f'read = ["{READ}"]\nadmin = ["{ADMIN}"]\n')
    return file


@pytest.fixture
def client(tokens: Path) -> Iterator[Client]:
    service = service_of(MANAGER, ServingConfig(tokens_file=str(tokens)))
    yield Client(build_app(service))
    service.close()


def test_without_a_token_only_the_probes_answer(client: Client) -> None:
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    for answer in (client.get("/version"), client.get("/metrics"), client.post("/recommend", json={"user": "u0"})):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "serving.tokens_file" in answer.json()["detail"][0]["do"]


@pytest.mark.parametrize("token", [READ, ADMIN])
def test_a_token_of_either_role_may_ask(client: Client, token: str) -> None:
    assert client.post("/recommend", json={"user": "u0"}, token=token).status_code == 200
    assert client.get("/metrics", token=token).status_code == 200


@pytest.mark.parametrize("token", ["", "x", READ + "x", READ.upper(), "Bearer"])
def test_another_token_may_not(client: Client, token: str) -> None:
    assert client.post("/recommend", json={"user": "u0"}, token=token).status_code == 401


def test_a_token_that_may_only_read_is_told_so(tokens: Path) -> None:
    access_by_token = Access.read(str(tokens))
    access_by_token.check([(b"authorization", f"bearer {ADMIN}".encode())], "admin")
    with pytest.raises(Exception, match="expected a token of role admin, got one of role read"):
        access_by_token.check([(b"authorization", f"Bearer {READ}".encode())], "admin")


def test_a_token_that_is_replaced_no_longer_counts(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "LOOK_EVERY_S", 0.0)
    access_by_token, header = Access.read(str(tokens)), [(b"authorization", f"Bearer {READ}".encode())]
    access_by_token.check(header, "read")
    tokens.write_text("read = [")
    os.utime(tokens, ns=(1, 1))
    access_by_token.check(header, "read")  # a file that cannot be read changes nothing
    tokens.write_text('read = ["a-token-that-came-later"]')
    os.utime(tokens, ns=(2, 2))
    with pytest.raises(Exception, match="send a token"):
        access_by_token.check(header, "read")


@pytest.mark.parametrize(
    ("text", "message"),
    [("read = [", "expected a TOML file"), ("", "at least one token"), ('read = ["short"]', "16 or more characters"),
     ('write = ["a-token-that-writes"]', "expected lists read and admin"), ("read = [1]", "16 or more characters"),
     ('read = ["a-token-with-a-newline\\n"]', "spaces around it"),
     ('read = ["a-token-for-both"]\nadmin = ["a-token-for-both"]', "one role for each token")],
)  # fmt: skip
def test_a_wrong_token_file_is_refused_at_start(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokens.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Access.read(str(tmp_path / "tokens.toml"))


def test_a_server_that_asks_for_no_token_would_be_caught(tokens: Path) -> None:
    service = service_of(MANAGER, ServingConfig(tokens_file=str(tokens)))
    broken = Client(build_app(service, Access()))
    assert broken.get("/version").status_code == 200, "test_without_a_token_only_the_probes_answer would fail"
    service.close()


def test_the_document_says_where_a_token_is_needed(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "security" in paths["/recommend"]["post"]
    assert {"401", "403"} <= set(paths["/recommend"]["post"]["responses"])
    assert "security" not in paths["/healthz"]["get"]
