"""The server process on a real broker: swaps under load, crashes, a clean shutdown, a broker that goes away."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition

from headrace.command import WRONG_CONFIGURATION
from serving.answering.engine import Engine
from serving.answering.request import Request
from serving.config import ServingConfig
from serving.errors import StartError
from serving.http.listener import bind
from serving.users.histories import Histories
from serving.versions.manager import WeightsManager
from tests.brokers import REPOSITORY, Broker, crowding, free_port, wait_until
from tests.process_factory import ProcessFactory
from tests.serving.wire import ServerProcess, Wire, server_config, server_environment
from tests.serving.world import START_MS, World
from wire.assembler import VersionAssembler
from wire.config import KafkaConfig
from wire.example_codec import encode_example
from wire.status import ServerStatus, decode_status
from wire.weights import Version

NOW_MS = START_MS + 10**8


@pytest.fixture
def wire(kafka: Broker, topic_prefix: str) -> Iterator[Wire]:
    wire = Wire(kafka, topic_prefix)
    yield wire
    wire.close()


def ask_recommend(server: ServerProcess, user: str) -> dict[str, Any]:
    answer = server.client.post("/recommend", json={"user": user, "timestamp": NOW_MS})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def without_age(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "freshness_s"}


class Known:
    """Each version's answers, computed here one request at a time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.histories = Histories(10**8)
        for each in world.examples():
            self.histories.feed(0, encode_example(each))
        self.engine = Engine(self.histories, cache_bytes=0)
        self.manager = WeightsManager()
        self.items: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def learn(self, version: Version) -> None:
        self.manager.stage(version)
        self.manager.swap()
        with self.manager.hold() as held:
            assert held is not None
            for user in self.world.histories:
                past = self.histories.get(user)
                assert past is not None
                ask = Request(user, past.interactions, np.zeros(0, np.int64), NOW_MS, exclude_seen=None)
                found = self.engine.answer(held, [ask])[0]
                self.items[held.which[1], user] = [
                    {"item": held.names[key], "score": score}
                    for key, score in zip(found.items.tolist(), found.scores.tolist(), strict=True)
                ]


@pytest.mark.slow
@pytest.mark.parametrize("search", ["exact", "index"])  # with all lists, since there are fewer than are probed
def test_under_load_every_answer_is_bit_for_bit_that_of_the_version_it_names(
    wire: Wire, tmp_path: Path, factory: ProcessFactory, search: str
) -> None:
    world, assembler = World(num_users=5), VersionAssembler()
    known = Known(world)
    batches = []
    offset = 0
    for number in range(24):
        records = world.records("base" if number % 5 == 0 else "delta", offset)
        offset += len(records)
        batches.append(records)
        (version,) = [found for record in records if (found := assembler.feed(*record)) is not None]
        known.learn(version)
    wire.tell(world.examples())
    wire.send(batches[0])
    server = ServerProcess(
        factory, wire.kafka, tmp_path, max_batch=1, num_workers=2, cache_bytes=0, search=search, search_least_items=1,
        search_compare_s=0.01,
    )  # fmt: skip
    answers: list[tuple[str, dict[str, Any]]] = []
    failures: list[Any] = []
    done = threading.Event()

    def hammer(index: int) -> None:
        users = list(world.histories)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not done.is_set():
                user = users[index % len(users)]
                answer = client.post("/recommend", json={"user": user, "timestamp": NOW_MS})
                (answers if answer.status_code == 200 else failures).append((user, answer.json()))
                index += 1

    try:
        server.wait_ready()
        threads = [threading.Thread(target=hammer, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for number, records in enumerate(batches[1:], start=1):
            wire.send(records)
            server.wait_version((1, number))
        if search == "index":
            wait_until(lambda: server.client.get("/readyz").json()["recall"] == 1.0, 30, "no answer was compared")
            metrics = server.client.get("/metrics").text
            assert "headrace_search_answers_total 0.0" not in metrics
            assert "headrace_search_failures_total 0.0" in metrics
        done.set()
        for thread in threads:
            thread.join(60)
    finally:
        done.set()
        server.close()
    assert not failures, failures[:3]
    numbers = [answer["version"]["number"] for _, answer in answers]
    assert len(set(numbers)) > 15, "answers of many versions"
    for user, answer in answers:
        assert answer["items"] == known.items[answer["version"]["number"], user]
    differing = {str(known.items[number, "u0"]) for number in range(24)}
    assert len(differing) == 24, "a mixed-up version would be seen: every one answers differently"


@pytest.mark.slow
def test_a_killed_server_comes_back_from_the_topics_alone_with_the_same_answers(
    wire: Wire, tmp_path: Path, factory: ProcessFactory
) -> None:
    world = World(num_users=4)
    wire.tell(world.examples(partition=1))
    for kind in ("base", "delta", "delta"):
        wire.publish(world, kind)
    first = ServerProcess(factory, wire.kafka, tmp_path)
    try:
        first.wait_ready()
        before = [without_age(ask_recommend(first, user)) for user in world.histories]
        first.process.send(signal.SIGKILL)
        first.process.wait(60)
    finally:
        first.close()
    second = ServerProcess(factory, wire.kafka, tmp_path, port=first.port)
    try:
        second.wait_ready()
        assert [without_age(ask_recommend(second, user)) for user in world.histories] == before
        assert before[0]["version"] == {"epoch": 1, "number": 2}
        assert not before[0]["cold"]
        _status_says(wire, (1, 2))
        second.process.send(signal.SIGTERM)
        assert second.process.wait(60) == 0
    finally:
        second.close()


def _status_says(wire: Wire, which: tuple[int, int]) -> None:
    consumer = KafkaConsumer(bootstrap_servers=wire.kafka.bootstrap, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(wire.topics.status, 0)])
    found: list[ServerStatus] = []

    def told() -> bool:
        for records in consumer.poll(timeout_ms=200).values():
            found.extend(each for each in (decode_status(r.value) for r in records) if isinstance(each, ServerStatus))
        return any((each.epoch, each.number) == which and each.num_requests > 0 for each in found)

    try:
        wait_until(told, 60, "the server's status")
    finally:
        consumer.close()
    assert all(each.component.startswith("server@") for each in found)


@pytest.mark.slow
def test_an_orderly_end_answers_what_is_in_flight(wire: Wire, tmp_path: Path, factory: ProcessFactory) -> None:
    world = World(num_users=2)
    wire.tell(world.examples())
    wire.publish(world)
    server = ServerProcess(factory, wire.kafka, tmp_path, max_candidates=50_000, max_body_bytes=1_000_000)
    codes: list[int] = []

    def rank() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            codes.append(client.post("/rank", json={"user": "u0", "items": list(range(50_000))}).status_code)

    try:
        server.wait_ready()
        threads = [threading.Thread(target=rank) for _ in range(3)]
        for thread in threads:
            thread.start()
        in_flight = "headrace_requests_in_flight 4.0"  # the three, and the request for the metrics
        wait_until(lambda: in_flight in server.client.get("/metrics").text, 60, "the requests to arrive", every_s=0.01)
        server.process.send(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(60) == 0
        assert codes == [200, 200, 200]
    finally:
        server.close()


@pytest.mark.slow
def test_an_open_page_does_not_keep_a_server_from_its_end(wire: Wire, tmp_path: Path, factory: ProcessFactory) -> None:
    server = ServerProcess(factory, wire.kafka, tmp_path, drain_timeout_s=1000.0)
    try:
        wait_until(lambda: _is_alive(server), 60, "the server to listen")
        with httpx.stream("GET", f"{server.url}/events", timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: points"
            server.process.send(signal.SIGTERM)
            for _ in lines:
                pass
        assert server.process.wait(60) == 0, "long before drain_timeout_s"
    finally:
        server.close()


def _is_alive(server: ServerProcess) -> bool:
    assert server.process.status is None, server.process.log()
    try:
        return server.client.get("/healthz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_without_its_broker_a_server_goes_on_and_says_so(
    durable_kafka: Broker, topic_prefix: str, tmp_path: Path, factory: ProcessFactory
) -> None:
    wire, world = Wire(durable_kafka, topic_prefix), World(num_users=2)
    wire.tell(world.examples())
    wire.publish(world)
    server = ServerProcess(factory, wire.kafka, tmp_path)
    try:
        server.wait_ready()
        expected = without_age(ask_recommend(server, "u0"))
        wire.close()
        durable_kafka.kill()
        wait_until(lambda: server.client.get("/readyz").json()["broker"] is False, 60, "the loss to be told")
        assert "headrace_broker_up 0.0" in server.client.get("/metrics").text
        answer = without_age(ask_recommend(server, "u0"))
        assert [each["item"] for each in answer["items"]] == [each["item"] for each in expected["items"]]
        assert answer["version"] == expected["version"]
        assert server.client.get("/readyz").status_code == 200
        durable_kafka.restart()
        wait_until(lambda: server.client.get("/readyz").json()["broker"] is True, 60, "the broker to be back")
        wire = Wire(durable_kafka, topic_prefix)
        server.wait_version(wire.publish(world, "delta"))
    finally:
        server.close()
        wire.close()


def ended(server: ServerProcess, status: int = 1) -> list[str]:
    try:
        assert server.process.wait() == status
    finally:
        server.close()
    return server.process.log().splitlines()


def log_of_one_that_fails(wire: Wire, tmp_path: Path, factory: ProcessFactory, fault: str) -> list[str]:
    """The log of a server that a second version ends."""
    world = World(num_users=2)
    wire.publish(world)
    wire.tell(world.examples())
    server = ServerProcess(factory, wire.kafka, tmp_path, (fault,))
    try:
        wait_until(lambda: server.process.status is not None or server.ready(), 60, "it to be up, or over")
        wire.publish(world, "delta")
        assert server.process.wait(60) == 1
    finally:
        server.close()
    return server.process.log().splitlines()


def test_a_server_whose_follower_has_died_ends_with_one_line(
    wire: Wire, tmp_path: Path, factory: ProcessFactory
) -> None:
    last = log_of_one_that_fails(wire, tmp_path, factory, "the second swap fails")[-1]
    assert "a thread that follows the topics has failed (RuntimeError: unexpected)" in last
    assert "start the server again" in last


def test_a_server_whose_disk_is_full_says_that_and_shows_no_traceback(
    wire: Wire, tmp_path: Path, factory: ProcessFactory
) -> None:
    log = log_of_one_that_fails(wire, tmp_path, factory, "the disk is full at the second swap")
    assert log[-1] == "headrace serve: /tables: no room for more tables (errno 28); correct it, then start again"
    assert not any("Traceback" in line for line in log)


def test_a_server_waits_for_a_broker_that_is_not_there_and_says_so(tmp_path: Path, factory: ProcessFactory) -> None:
    nowhere = KafkaConfig(bootstrap=f"127.0.0.1:{free_port()}")
    server = ServerProcess(factory, nowhere, tmp_path)
    try:
        server.process.wait_for("broker away, trying again")
        ready = server.client.get("/readyz")
        assert ready.status_code == 503
        assert re.fullmatch(r"the broker, which has not answered for \d+ s", ready.json()["waits_for"])
        assert server.client.get("/healthz").status_code == 200
        assert server.process.log().count("broker away, trying again") == 1, "one line, not one of each thread"
        assert "kafka.bootstrap" in server.process.log()
        began_s = time.monotonic()
        assert server.process.stop() == 0
        assert time.monotonic() - began_s < 3.0 * crowding(), "it ends without the broker"
        assert server.process.log().count("broker away, trying again") == 1
    finally:
        server.close()


def test_a_port_in_use_is_one_clear_line_of_the_command(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = server_config(KafkaConfig(), tmp_path, port=taken.getsockname()[1])
        command = [sys.executable, "-m", "serving", "--config", str(config)]
        said = subprocess.run(
            command, cwd=REPOSITORY, env=server_environment(), capture_output=True, text=True, timeout=60, check=False
        )
    assert (said.returncode, said.stdout) == (1, "")
    [line] = said.stderr.splitlines()
    assert "serving.port: expected to listen on 127.0.0.1" in line


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_not_said_to_be_a_port_in_use(host: str) -> None:
    with pytest.raises(StartError, match=rf"serving\.host: expected to listen on {host}:0, got: .*0\.0\.0\.0 for all"):
        bind(ServingConfig(host=host, port=0))


def test_a_device_that_is_not_there_is_one_clear_line(tmp_path: Path, factory: ProcessFactory) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one here")
    lines = ended(ServerProcess(factory, KafkaConfig(), tmp_path, device="cuda"), WRONG_CONFIGURATION)
    assert len(lines) == 1, lines
    assert "serving.device" in lines[0]
