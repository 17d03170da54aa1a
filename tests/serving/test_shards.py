"""Servers of some users each, on a real broker: the same answers as one of all, whoever is asked, whatever happens."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.command import WRONG_CONFIGURATION
from tests.brokers import ApacheKafka, Broker, wait_until
from tests.process_factory import ProcessFactory
from tests.serving.wire import ServerProcess, Wire
from tests.serving.world import START_MS, World, example, slice_of
from wire.example import Example, Mark
from wire.hashing import item_hash
from wire.partitioner import partition_of
from wire.status import ServerStatus

NOW_MS, NUM_PARTITIONS = START_MS + 10**8, 4
TIMEOUT_S = 0.5
"""What another server has to answer in; a request asks two of them at most."""
TOKEN = "a token of sixteen or more"
HISTORY = [{"item": 3, "action": "click", "timestamp": START_MS}]


def partition(user: str) -> int:
    return partition_of(user.encode(), NUM_PARTITIONS)


def placed(world: World) -> list[Example]:
    """Each user's newest example, in the user's partition."""
    numbers = [itertools.count() for _ in range(NUM_PARTITIONS)]
    return [
        replace(
            example(user, slice_of(rows, -world.model.max_context, None)),
            partition=partition(user), number=next(numbers[partition(user)]),
        )
        for user, rows in world.histories.items()
    ]  # fmt: skip


class Shards:
    """A world of users in all partitions, its topics, and servers for it."""

    def __init__(self, broker: Broker, prefix: str, factory: ProcessFactory, folder: Path) -> None:
        self.wire, self.world = Wire(broker, prefix, partitions=NUM_PARTITIONS), World(num_users=16)
        assert {partition(user) for user in self.world.histories} == set(range(NUM_PARTITIONS))
        self.examples = placed(self.world)
        self.wire.tell(self.examples)
        for kind in ("base", "delta"):
            self.wire.publish(self.world, kind)
        self._broker, self._factory, self._folder, self._stack = broker, factory, folder, ExitStack()

    def start(
        self, partitions: str = "all", *, is_ready: bool = True, kafka: Any = None, **config: Any
    ) -> ServerProcess:
        config = {"cache_bytes": 0, "max_batch": 1, "peer_timeout_s": TIMEOUT_S, **config}
        server = ServerProcess(self._factory, kafka or self.wire.kafka, self._folder, partitions=partitions, **config)
        self._stack.callback(server.close)
        if is_ready:
            try:
                server.wait_ready()
            except AssertionError as error:  # a broker that does not answer says why
                told = self._broker.told() if isinstance(self._broker, ApacheKafka) else ""
                raise AssertionError(f"{error}\n{told}") from None
        return server

    def close(self) -> None:
        self._stack.close()
        self.wire.close()

    @property
    def users(self) -> list[str]:
        return list(self.world.histories)

    def of(self, *partitions: int) -> list[str]:
        return [user for user in self.users if partition(user) in partitions]


@pytest.fixture
def shards(kafka: Broker, topic_prefix: str, factory: ProcessFactory, tmp_path: Path) -> Iterator[Shards]:
    made = Shards(kafka, topic_prefix, factory, tmp_path)
    yield made
    made.close()


def all_held(server: ServerProcess) -> None:
    """Wait until every partition is held, as far as the server knows."""
    wait_until(lambda: server.client.get("/readyz").json()["unheld"] == [], 30, "all partitions to be held")


def ask(server: ServerProcess, user: str) -> httpx.Response:
    return server.client.post("/recommend", json={"user": user, "timestamp": NOW_MS})


def timeless(answer: Any) -> Any:
    """Without what depends on the moment."""
    if isinstance(answer, dict):
        return {key: timeless(value) for key, value in answer.items() if key != "freshness_s"}
    return [timeless(each) for each in answer] if isinstance(answer, list) else answer


def questions(users: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests of every kind that an answer from a history can depend on."""
    for user in [*users, "nobody knows this user", "Ünïcode ☃"]:
        about = {"user": user, "timestamp": NOW_MS}
        yield "/recommend", about
        for after_s in (1, 15, 60, 240):  # first sightings are those of all users
            yield "/recommend", {**about, "min_age_s": (NOW_MS - START_MS) / 1000 - after_s, "deny": [3], "k": 20}
        yield "/rank", {**about, "items": [1, 2, 3, "unknown"]}
        yield "/explain", {**about, "k": 3}
    mixed = [{"user": user, "timestamp": NOW_MS, "k": 3} for user in users]
    mixed.insert(5, {"history": HISTORY, "timestamp": NOW_MS})
    yield "/recommend/batch", {"requests": mixed}
    ranked = [{"user": user, "timestamp": NOW_MS, "items": [4, 5]} for user in reversed(users)]
    yield "/rank/batch", {"requests": [*ranked, {"history": HISTORY, "timestamp": NOW_MS, "items": [4]}]}
    yield "/recommend", {"history": HISTORY, "timestamp": NOW_MS}
    yield "/similar", {"item": 3}
    yield "/items", {"items": [1, 2, 19]}


@pytest.mark.slow
def test_any_server_of_some_users_answers_as_one_of_all(shards: Shards) -> None:
    removed = replace(
        example("", slice_of(shards.world.histories["u0"], 0, 0)), mark=Mark.ITEM, names={item_hash(7): 7}, partition=1,
        number=100,
    )  # fmt: skip
    shards.wire.tell([removed])
    whole, servers = shards.start(), [shards.start(each) for each in ("1/2", "1,3")]
    for server in servers:
        all_held(server)
    told = {path: whole.client.post(path, json=body).json() for path, body in questions(shards.users)}
    assert not any(each["item"] == 7 for each in told["/recommend"]["items"])
    for path, body in questions(shards.users):
        expected = whole.client.post(path, json=body)
        assert expected.status_code == 200, expected.text
        for server in servers:
            answer = server.client.post(path, json=body)
            assert answer.status_code == 200, (path, body, answer.text)
            assert timeless(answer.json()) == timeless(expected.json()), (path, body)
    for user in shards.users:
        expected = whole.client.get("/history", params={"user": user})
        assert expected.json()["num_history"] > 0
        assert {server.client.get("/history", params={"user": user}).text for server in servers} == {expected.text}
    for user in ("a+b&c=d", "50%2F50 #1?", "☃ü/..", "\n\x00"):
        assert {server.client.get("/history", params={"user": user}).json()["user"] for server in servers} == {user}
    for server, own in zip(servers, ({0, 2}, {1, 3}), strict=True):
        metrics = server.client.get("/metrics").text
        assert "headrace_partitions_held 2.0" in metrics
        assert "headrace_partitions_unheld 0.0" in metrics
        assert f"headrace_histories {len(shards.of(*own))}.0" in metrics
        said = server.client.get("/partitions").json()
        assert (said["num_partitions"], set(said["held"]), said["unheld"]) == (NUM_PARTITIONS, own, [])
        others = {each["address"]: set(each["partitions"]) for each in said["others"]}
        assert others == {whole.url: {0, 1, 2, 3}} | {
            other.url: {0, 1, 2, 3} - own for other in servers if other is not server
        }
        assert set(server.client.get("/users").json()["users"]) == set(shards.of(*own))


@pytest.mark.slow
def test_a_server_knows_of_items_whoever_chose_them(shards: Shards) -> None:
    whole, servers = shards.start(), [shards.start(each) for each in ("1/2", "2/2")]
    for number, place in enumerate((0, 1), start=1):
        user, rows = f"newcomer{number}", slice_of(shards.world.histories["u0"], 0, 2 * number)
        early = replace(rows, timestamp_ms=rows.timestamp_ms - 10**6 * number)
        shards.wire.tell([replace(example(user, early), partition=place, number=len(shards.of(place)))])
        wanted = {"user": "u1", "timestamp": NOW_MS, "k": 20, "exclude_seen": False,
                  "min_age_s": (NOW_MS - START_MS) / 1000 + 900 * number}  # fmt: skip

        def found(server: ServerProcess, wanted: dict[str, Any] = wanted) -> Any:
            return timeless(server.client.post("/recommend", json=wanted).json())

        wait_until(lambda found=found: found(whole)["items"], 30, "the new items")  # type: ignore[misc]
        for server in servers:
            wait_until(lambda found=found, server=server: found(server) == found(whole), 30, "the same items")  # type: ignore[misc]


@pytest.mark.slow
def test_what_is_wrong_with_a_request_is_said_the_same(shards: Shards) -> None:
    whole, server, _ = shards.start(), shards.start("1/2"), shards.start("2/2")
    all_held(server)
    for user in (shards.of(0)[0], shards.of(1)[0]):
        for path, body in (
            ("/rank", {"user": user, "items": [1], "weights": {"unknown": 1}}),
            ("/recommend", {"user": user, "features": {"unknown": ["x"]}}),
            ("/recommend", {"user": user, "k": 10**6}),
            ("/recommend", {"user": user, "history": HISTORY}),
        ):
            expected, answer = (each.client.post(path, json=body) for each in (whole, server))
            assert (answer.status_code, answer.json()) == (422, expected.json())


class Load:
    """Threads that keep asking one server for every user; what came, by user: status, seconds, and the text."""

    def __init__(self, server: ServerProcess, users: list[str]) -> None:
        self.found: list[tuple[str, int, float, str]] = []
        self._done, self._url = threading.Event(), server.url
        self._threads = [threading.Thread(target=self._ask, args=(users[at::4],)) for at in range(4)]

    def _ask(self, users: list[str]) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            for user in itertools.cycle(users):
                if self._done.is_set():
                    return
                began_s = time.monotonic()
                answer = client.post("/recommend", json={"user": user, "timestamp": NOW_MS})
                self.found.append((user, answer.status_code, time.monotonic() - began_s, answer.text))

    def __enter__(self) -> Load:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for each in self._threads:
            each.join(60)

    def is_answered(self, users: list[str], status: int) -> bool:
        """Whether each of the users was answered so, since the last call that returned True."""
        return {user for user, code, *_ in self.found if code == status} >= set(users)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_server_its_users_alone_are_refused_and_soon(shards: Shards, how: signal.Signals) -> None:
    server, other = shards.start("0-1"), shards.start("2-3")
    all_held(server)
    ours, theirs = shards.of(0, 1), shards.of(2, 3)
    with Load(server, shards.users) as load:
        wait_until(lambda: load.is_answered(shards.users, 200), 30, "every user to be answered")
        before = len(load.found)
        other.process.send(how)
        wait_until(lambda: load.is_answered(theirs, 503), 30, "the other's users to be refused")
        time.sleep(2 * TIMEOUT_S)
        lost = load.found[before:]
        if how == signal.SIGKILL:
            other.close()
            other = shards.start("2-3", port=other.port)
        else:
            other.process.send(signal.SIGCONT)
        wait_until(lambda: ask(server, theirs[0]).status_code == 200, 30, "it to be asked again")
        load.found.clear()
        wait_until(lambda: load.is_answered(shards.users, 200), 30, "every user to be answered again")
    assert {code for user, code, *_ in lost if user in ours} == {200}
    refused = [(took_s, text) for user, code, took_s, text in lost if code != 200]
    assert {code for _, code, *_ in lost} == {200, 503}
    assert max(took_s for took_s, _ in refused) < 4 * TIMEOUT_S, "each within the limit, on a busy machine"
    assert sorted(took_s for took_s, _ in refused)[len(refused) // 2] < TIMEOUT_S / 2, "most need not find out again"
    (problem,) = json.loads(refused[0][1])["detail"]
    assert problem["expected"].startswith("a holder of partition ")
    assert problem["expected"][-1] in "23"
    assert f"server@{_host()}:{other.port}" in problem["do"]


def _host() -> str:
    import platform

    return platform.node()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_partition_with_two_holders_survives_the_loss_of_one(shards: Shards, how: signal.Signals) -> None:
    server, first, _second = shards.start("1/2"), shards.start("2/2"), shards.start("2/2")
    wait_until(lambda: len(server.client.get("/partitions").json()["others"]) == 2, 30, "both to be known")
    with Load(server, shards.users) as load:
        wait_until(lambda: load.is_answered(shards.users, 200), 30, "every user to be answered")
        first.process.send(how)
        load.found.clear()
        wait_until(lambda: load.is_answered(shards.users, 200), 30, "every user to be answered without it")
        time.sleep(2 * TIMEOUT_S)
    assert {code for _, code, *_ in load.found} == {200}
    failures = server.client.get("/metrics").text.partition("\nheadrace_peer_failures_total ")[2].split()[0]
    assert float(failures) > 0, "it was asked, and failed"


@pytest.mark.slow
def test_a_batch_is_refused_as_a_whole_if_a_part_has_no_holder(shards: Shards) -> None:
    server, _ = shards.start("0-1"), shards.start("2")
    wait_until(lambda: server.client.get("/readyz").json()["unheld"] == [3], 30, "the other one to be known")
    assert server.client.get("/readyz").status_code == 200, "it answers what it can"
    held = [{"user": user} for user in shards.of(0, 1, 2)]
    assert server.client.post("/recommend/batch", json={"requests": held}).status_code == 200
    answer = server.client.post("/recommend/batch", json={"requests": [*held, {"user": shards.of(3)[0]}]})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["detail"][0]["expected"] == "a holder of partition 3"
    assert "no live server holds it" in answer.text


@pytest.mark.slow
def test_the_token_goes_along(shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(f'read = ["{TOKEN}"]\n')
    (tmp_path / "others.toml").write_text('read = ["another one of sixteen"]\n')
    tokens = str(tmp_path / "tokens.toml")
    server, _, user = shards.start("0", tokens_file=tokens), shards.start("1", tokens_file=tokens), shards.of(1)[0]
    shards.start("2-3", tokens_file=str(tmp_path / "others.toml"))
    all_held(server)
    assert ask(server, user).status_code == 401
    server.client.headers["authorization"] = f"Bearer {TOKEN}"
    assert ask(server, user).status_code == 200
    refused = ask(server, shards.of(2)[0])
    assert refused.status_code == 503, "the client's token is right; the servers' are not the same"
    assert "give both the same serving.tokens_file" in refused.text


def reported(name: str, address: str, partitions: str = "all", **more: Any) -> ServerStatus:
    told: dict[str, Any] = {"num_partitions": NUM_PARTITIONS, "epoch": 1, "number": 1, **more}
    return ServerStatus(component=name, time_ms=int(time.time() * 1000), address=address, partitions=partitions, **told)


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of something that answers whatever it is asked, and the headers that it got."""
    got: list[dict[str, str]] = []

    class Yes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append({key.lower(): value for key, value in self.headers.items()})
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Yes)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}", got
    listening.shutdown()
    thread.join(60)
    listening.server_close()


@pytest.mark.slow
def test_forged_reports_lead_to_no_answer_and_to_no_loop(
    shards: Shards, stranger: tuple[str, list[dict[str, str]]]
) -> None:
    address, got = stranger
    server = shards.start("0", peers=[address, "http://127.0.0.1:1"])
    looping = shards.start("1")
    user = shards.of(3)[0]

    def refusal(asked: ServerProcess, *reports: ServerStatus) -> str:
        shards.wire.report(*reports)
        names = {each.component for each in reports}
        wait_until(
            lambda: {each["server"] for each in asked.client.get("/partitions").json()["others"]} >= names, 30, "them"
        )
        answer = ask(asked, user)
        assert answer.status_code == 503, answer.text
        return answer.text

    assert "is not what answers at" in refusal(server, reported("a stranger", address))
    assert got[-1]["x-headrace-forwarded"] == f"{shards.wire.kafka.prefix} 4"
    shards.wire.report(*(reported(each, "", partitions="none") for each in ("a stranger",)))
    loops = [reported("itself", looping.url), reported("the other", server.url)]
    said = refusal(looping, *loops)
    assert "itself does not hold it" in said
    assert "the other does not hold it" in said
    num = len(got)
    wait_until(lambda: "others" in server.client.get("/partitions").text, 30, "an answer")
    shards.wire.report(reported("not allowed", looping.url), reported("nonsense", "file:///etc/passwd"))
    shards.wire.report(reported("an earlier build", "", partitions="", num_partitions=0))
    time.sleep(1)
    assert not server.client.get("/partitions").json()["others"], "serving.peers does not name them"
    assert "no live server holds it" in ask(server, user).text
    assert len(got) == num


@pytest.mark.slow
def test_servers_of_another_deployment_or_line_are_not_believed(
    shards: Shards, kafka: Broker, topic_prefix: str
) -> None:
    other = Wire(kafka, f"{topic_prefix}other", partitions=NUM_PARTITIONS)
    line = Wire(kafka, topic_prefix, "b", partitions=NUM_PARTITIONS)
    try:
        for each in (other, line):
            each.publish(World(num_users=2))
        server = shards.start("0")
        elsewhere, beside = (shards.start(kafka=each.kafka) for each in (other, line))
        wait_until(lambda: len(server.client.get("/partitions").json()["others"]) == 1, 30, "the line's server")
        user = shards.of(1)[0]
        refused = ask(server, user)
        assert refused.status_code == 503
        assert f"{shards.wire.kafka.prefix} 4 b" in refused.text, "it says how the marks differ"
        shards.wire.report(reported("elsewhere", elsewhere.url, line=""))
        wait_until(lambda: len(server.client.get("/partitions").json()["others"]) == 2, 30, "both")
        time.sleep(1.1)  # neither is avoided any more
        refused = ask(server, user)
        assert refused.status_code == 503
        assert f"{other.kafka.prefix} 4" in refused.text
        assert beside.client.post("/recommend", json={"user": user}).status_code == 200
    finally:
        other.close()
        line.close()


def test_partitions_that_the_topic_lacks_end_a_server_with_one_line(shards: Shards) -> None:
    server = shards.start("2-7", is_ready=False)
    assert server.process.wait(60) == WRONG_CONFIGURATION
    assert "serving.partitions: expected numbers below 4" in server.process.log().splitlines()[-1]
