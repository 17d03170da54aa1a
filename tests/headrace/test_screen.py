"""What people see: the lag page and its plain line, and how they fit a terminal."""

import time
from typing import Any

import msgspec
import pytest
from rich.console import Console

from headrace import lag
from headrace.config import Settings
from headrace.lag import excess, plain, watch
from headrace.lag_view import STAGES, LagView
from headrace.screen import page
from tests.brokers import Broker
from tests.foreign import FOREIGN
from wire.config import KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.producer import make_producer
from wire.lag import decode_lag
from wire.topics import Topics


def message() -> dict[str, Any]:
    stage = {"lag_records": 3, "lag_s": 0.5, "partitions": {}}
    return {
        "time_ms": 0, "stages": dict.fromkeys(STAGES, stage), "throughput": {"interactions_per_s": 12.0},
        "num_interactions": 4000, "num_servers": 1, "version": {"epoch": 0, "number": 5},
        "freshness": {"now_s": 2.25},
    }  # fmt: skip


@pytest.mark.parametrize("width", [80, 130])
def test_nothing_on_the_page_is_cut_or_wrapped(width: int) -> None:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    told = {**message(), "throughput": {"interactions_per_s": 13_204.0}, "num_interactions": 100_000}
    view = LagView(
        dataset="MovieLens-100K", broker="an embedded broker", lag=told, page="http://127.0.0.1:44875",
        phase="asking for recommendations", num_actions=100_000, num_sent=100_000,
    )  # fmt: skip
    with console.capture() as capture:
        console.print(page(view))
    shown = capture.get()
    for words in (
        "actions not read yet", "examples not delivered yet", "published, not served yet", "popular",
        "page: http://127.0.0.1:44875", "100,000 of 100,000   13,204 interactions/s", "100,000   0 actions/s",
    ):  # fmt: skip
        assert words in shown
    assert "…" not in shown
    assert len(shown.splitlines()) <= 24


def test_without_a_terminal_a_message_is_one_line() -> None:
    shown = "lag: ingest 3 sequence 3 train 3 publish 3 serve 3  12 interactions/s learned, 4,000 in all; servers: 1"
    assert plain(LagView(lag=message()), 2.0) == f"00:00:00  {shown}  version 0/5  fresh 2.2 s"


def test_an_old_message_says_so_and_every_age_in_it_has_grown() -> None:
    told = {**message(), "processes": [{"role": "worker", "component": "w-1", "silent_s": 1.0}]}
    line = plain(LagView(lag=told), 42.0)
    assert line.startswith("00:00:00 OLD (42 s)  lag: ingest 3 (42.5 s) sequence 3 (42.5 s) ")
    assert "worker w-1 silent for 43 s" in line
    assert line.endswith("fresh 44.2 s")
    assert told["stages"]["ingest"]["lag_s"] == 0.5


def test_while_no_message_comes_the_last_one_is_told_again_and_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lag, "SILENT_AFTER_S", 0.0)
    lag._lines([message(), None, None], LagView(), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(" OLD (" in line for line in lines)
    lag._lines([message(), None, None], LagView(), as_json=True)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_was_refused_is_named_by_reason_and_a_missing_version_by_when_it_will_come() -> None:
    told = {**message(), "version": None, "epoch": 3, "num_steps": 0, "dead_letters": {"future": 1200, "malformed": 2}}
    line = plain(LagView(lag=told, publish_every_s=2.0), 0.0)
    assert "; no version yet: the first is due within 2 s of the first step" in line
    assert "; dead letters: future 1,200, malformed 2 (headrace dead-letters)" in line
    line = plain(LagView(lag={**told, "num_steps": 9}, publish_every_s=2.0), 0.0)
    assert "; no version of this trainer yet: the first is due within 2 s" in line


@pytest.mark.parametrize(("catch_up_s", "words"), [(90.0, "caught up in 90 s"), (None, "falling behind"), (0.0, "")])
def test_the_trainers_rate_is_shown_beside_the_arrivals_until_it_has_caught_up(
    catch_up_s: float | None, words: str
) -> None:
    rates = {
        "interactions_per_s": 12.0,
        "examples_per_s": 300,
        "arriving_examples_per_s": 200,
        "catch_up_s": catch_up_s,
    }
    line = plain(LagView(lag={**message(), "throughput": rates}), 2.0)
    assert (f"; 300 examples/s learned, 200/s arrive: {words}" in line) == bool(words)


def test_dead_processes_are_named_and_what_was_lost_is_counted() -> None:
    processes = [
        {"role": "worker", "component": "w-1", "silent_s": 31.0},
        {"role": "worker", "component": "w-2", "silent_s": 1.0},
        {"role": "standby", "component": "t-2", "silent_s": 1.0},
        {"role": "standby", "component": "t-3", "silent_s": 99.0},
    ]  # fmt: skip
    line = plain(LagView(lag={**message(), "processes": processes, "num_gone": 7, "num_lost": 0}), 2.0)
    assert "; standbys: 1; worker w-1 silent for 31 s; standby t-3 silent for 99 s" in line
    assert "w-2" not in line
    assert "; 7 action records lost unread" in line
    assert "examples lost" not in line


def test_anything_further_behind_than_allowed_is_named() -> None:
    told = message()
    told["stages"] = {**told["stages"], "train": {"lag_records": 3, "lag_s": 7.0, "partitions": {}}}
    assert excess(told, 1.0, 7.0) == ""
    assert excess(told, 1.0, 6.5) == "expected at most 6.5 s, got train 7.0 s"
    old = "expected at most 30.2 s, got ingest 30.5 s, sequence 30.5 s, train 30.5 s, publish 30.5 s, serve 30.5 s"
    assert excess(message(), 30.0, 30.2) == old
    assert excess(message(), 31.0, 30.2) == f"{old.replace('30.5', '31.5')}, the newest message 31.0 s old"


@pytest.mark.parametrize(("max_s", "lag_s", "status"), [(None, 0.5, 0), (60.0, 0.5, 0), (60.0, 61.0, 1)])
def test_the_status_says_whether_anything_is_further_behind_than_allowed(
    max_s: float | None, lag_s: float, status: int, kafka: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=f"lag{time.time_ns()}", partitions=1)
    ensure_topics(config)
    told = {**message(), "time_ms": int(time.time() * 1000)}
    told["stages"] = {name: {**stage, "lag_s": lag_s} for name, stage in told["stages"].items()}
    producer = make_producer(config)
    producer.send(Topics.under(config.prefix).lag, msgspec.json.encode(told), partition=0)
    producer.flush(10)
    producer.close()
    assert watch(Settings(kafka=config), once=True, max_s=max_s) == status
    shown = capsys.readouterr()
    assert "lag: ingest 3" in shown.out
    assert ("expected at most 60 s, got ingest 61.0 s" in shown.err) == (status == 1)


@pytest.mark.parametrize("max_s", [None, 1.0])
def test_without_any_message_it_says_so_and_ends(
    max_s: float | None, kafka: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=f"lag{time.time_ns()}", partitions=1)
    ensure_topics(config)
    assert watch(Settings(kafka=config), once=True, max_s=max_s) == 1
    said = capsys.readouterr().err
    assert "waiting for a trainer to report on" in said
    assert "expected a message, got none; start a trainer" in said


@pytest.mark.parametrize("value", [*FOREIGN, b'{"time_ms": 1}'])
def test_records_that_are_not_lag_messages_are_ignored(value: bytes | None) -> None:
    assert decode_lag(value) is None
    assert decode_lag(msgspec.json.encode(message())) == message()


def test_the_plain_line_names_dead_letters_if_there_are_any() -> None:
    assert "dead letters" not in plain(LagView(lag=message()), 2.0)
    told = {**message(), "num_dead_letters": 1007}
    assert "; dead letters: 1,007 (headrace dead-letters)" in plain(LagView(lag=told), 2.0)


def test_the_rate_is_that_of_sending_and_not_of_what_was_sent() -> None:
    view = LagView()
    view.sent_at.extend([(time.monotonic() - 11.0, 0), (time.monotonic() - 10.0, 500)])
    assert view.rate == 0.0
    view.note_sent(600)
    assert 0.0 < view.rate < 600 / 11


def test_what_is_sent_in_the_first_moment_is_not_taken_for_a_rate() -> None:
    view = LagView()
    view.note_sent(0)
    view.note_sent(1000)
    assert view.rate <= 1000
