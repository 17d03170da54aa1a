"""The page: its files, what it may load, its event stream, a user's history, and the actions that it sends."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from kafka import KafkaConsumer, TopicPartition

from serving.config import ServingConfig
from serving.http.app import build_app
from serving.pages import FOLDER
from serving.pulse import Served
from serving.sender import ActionSender
from tests.brokers import REPOSITORY, Broker
from tests.serving.inprocess import Client
from tests.serving.live import MANAGER, WORLD, live_server, service_of
from tests.serving.wire import Wire
from tests.serving.world import KINDS, MODEL
from wire.config import ActionConfig, KafkaConfig
from wire.partitioner import partition_of

ELSEWHERE = re.compile(r"""(?:src|href|url\(|fetch\(|import )\s*=?\s*["'(]?(?:https?:)?//""")
NOW_MS = 1_800_000_000_000


@pytest.fixture
def client() -> Any:
    service = service_of(MANAGER, ServingConfig())
    yield Client(build_app(service))
    service.close()


def test_everything_that_the_pages_load_is_there(client: Client) -> None:
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        loaded = re.findall(r'(?:src|href)="(/page/[^"]+)"', answer.text)
        assert loaded
        for each in loaded:
            assert client.get(each).status_code == 200, each


def test_a_page_may_load_nothing_from_elsewhere(client: Client) -> None:
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.name not in ("uplot.LICENSE.txt", "icon.svg"):
            assert not ELSEWHERE.search(text), path.name
        if not path.name.startswith("uplot"):
            assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", text), path.name


def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    with live_server() as (_, port):
        url = f"http://127.0.0.1:{port}/page/uplot.js"
        first = httpx.get(url)
        again = httpx.get(url, headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


def test_nothing_but_the_files_of_the_page_is_served() -> None:
    with live_server() as (_, port):
        for path in ("/page/", "/page/../http.py", "/page/%2e%2e/http.py", "/page/nothing.js", "/page//etc/passwd"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 404


def test_where_the_page_is_off_nothing_that_it_shows_is_served() -> None:
    service = service_of(MANAGER, ServingConfig(page=False))
    client = Client(build_app(service))
    for path in ("/", "/events", "/users", "/history?user=u1", "/about"):
        assert client.get(path).status_code == 404
    assert client.get("/docs").status_code == 200
    assert "/users" not in client.get("/openapi.json").json()["paths"]
    service.close()


def test_a_history_is_told_newest_first_with_every_kind(client: Client) -> None:
    answer = client.get("/history?user=u1").json()
    rows = WORLD.histories["u1"]
    num = min(MODEL.max_context, len(rows))
    assert answer["num_history"] == num
    told = answer["interactions"]
    assert [each["timestamp"] for each in told] == rows.timestamp_ms[-num:][::-1].tolist()
    assert told[0]["item"] == WORLD.learner.names.all[int(rows.item_hash[-1])]
    assert told[0]["actions"] == [kind for bit, kind in enumerate(KINDS) if int(rows.action_bits[-1]) >> bit & 1]
    assert client.get("/history?user=nobody").json()["interactions"] == []
    assert client.get("/history").status_code == 422


@pytest.mark.parametrize("query", ["user=%ff", "user=%c3", "%ff=1&user=u1", "user=u%ED%A0%80"])
def test_a_user_who_is_not_utf_8_is_refused_not_taken_for_another(query: str, client: Client) -> None:
    refused = client.get(f"/history?{query}")
    assert refused.status_code == 422
    (problem,) = refused.json()["detail"]
    assert (problem["field"], problem["expected"], problem["got"]) == ("user", "UTF-8", query)
    assert client.get("/history?user=%C3%A9").json()["user"] == "é"


def test_users_seen_last_come_first(client: Client) -> None:
    assert client.get("/users").json()["users"] == ["u3", "u2", "u1", "u0"]


def events(lines: Any, num: int) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            found.append((name, json.loads(line.removeprefix("data: "))))
            if len(found) == num:
                return found
    return found


def test_the_stream_begins_with_what_is_known_and_goes_on_until_the_server_ends() -> None:
    with live_server() as (service, port):
        service.pulse.sample(Served(), NOW_MS)
        service.pulse.sample(Served(), NOW_MS + 1000)
        with httpx.stream("GET", f"http://127.0.0.1:{port}/events", timeout=60) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.iter_lines()
            ((name, known),) = events(lines, 1)
            assert (name, [each["time_ms"] for each in known]) == ("points", [NOW_MS, NOW_MS + 1000])
            service.pulse.sample(Served(), NOW_MS + 2000)
            ((name, point),) = events(lines, 1)
            assert (name, point["time_ms"]) == ("point", NOW_MS + 2000)
            service.stopping.set()
            assert events(lines, 1) == []


def test_more_streams_than_a_server_keeps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.pages.MAX_STREAMS", 1)
    with live_server() as (service, port), httpx.stream("GET", f"http://127.0.0.1:{port}/events", timeout=60) as first:
        lines = first.iter_lines()
        assert events(lines, 1)
        assert httpx.get(f"http://127.0.0.1:{port}/events").status_code == 503
        service.stopping.set()


def test_who_asks_for_the_head_of_the_stream_holds_none_and_gets_the_next_answer() -> None:
    with live_server() as (_, port), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"HEAD /events HTTP/1.1\r\nhost: a\r\n\r\nGET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        told = b""
        while b"alive" not in told:
            told += connection.recv(4096)
        assert told.count(b"HTTP/1.1 200 OK") == 2
        assert told.count(b"text/event-stream") == 1


def test_actions_are_taken_only_where_that_is_allowed_and_only_from_admins(client: Client, tmp_path: Path) -> None:
    action = {"user": "u1", "item": 3, "action": "click"}
    assert client.post("/actions", json=action).status_code == 404
    (tmp_path / "tokens.toml").write_text('read = ["a-token-that-reads"]\nadmin = ["a-token-that-administers"]')
    config = ServingConfig(allow_actions=True, tokens_file=str(tmp_path / "tokens.toml"))
    service = service_of(MANAGER, config)
    guarded = Client(build_app(service))
    assert guarded.post("/actions", json=action).status_code == 401
    assert guarded.post("/actions", json=action, token="a-token-that-reads").status_code == 403
    unknown = guarded.post("/actions", json={**action, "action": "veiw"}, token="a-token-that-administers")
    assert unknown.json()["detail"][0]["expected"] == "among view, click, like"
    service.close()


@pytest.mark.parametrize(
    ("path", "asked", "field"),
    [
        ("/actions", {"user": "\0u", "item": 3, "action": "click"}, "user"),
        ("/actions", {"user": "u1", "item": 3, "action": "click", "value": 1e39}, "value"),
        ("/actions", {"user": "u1", "item": 3, "action": "click", "domain": "d" * 257}, "domain"),
        ("/forget", {"user": "\0u"}, "user"),
        ("/forget", {"item": "i" * 257}, "item"),
    ],
)
def test_what_the_worker_would_refuse_is_refused_before_it_is_sent(
    path: str, asked: dict[str, Any], field: str
) -> None:
    service = service_of(MANAGER, ServingConfig(allow_actions=True, allow_forget=True, page=False))
    service.sender = ActionSender(KafkaConfig(), ActionConfig(kinds=KINDS))
    answer = Client(build_app(service)).post(path, json=asked)
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert problem["field"] == field
    assert problem["expected"]
    service.close()


@pytest.mark.slow
def test_an_action_of_the_page_is_one_as_any_producer_sends(kafka: Broker, topic_prefix: str) -> None:
    wire = Wire(kafka, topic_prefix)
    service = service_of(MANAGER, ServingConfig(allow_actions=True))
    service.sender = ActionSender(wire.kafka, ActionConfig(kinds=KINDS))
    client = Client(build_app(service))
    try:
        told = client.post("/actions", json={"user": 5, "item": "x", "action": ["click", "like"], "value": 2.5}).json()
        assert told["partition"] == partition_of(b"5", 2)
        consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
        consumer.assign([TopicPartition(wire.topics.actions, told["partition"])])
        (records,) = consumer.poll(timeout_ms=20_000).values()
        consumer.close()
        assert (records[0].key, records[0].offset, records[0].timestamp) == (b"5", told["offset"], told["record_ms"])
        action = json.loads(records[0].value)
        assert action == {"id": told["id"], "user": 5, "item": "x", "action": ["click", "like"], "value": 2.5,
                          "timestamp": told["timestamp"]}  # fmt: skip
        jsonschema.validate(action, json.loads((REPOSITORY / "schema" / "action.schema.json").read_text()))
    finally:
        service.sender.close()
        service.close()
        wire.close()
