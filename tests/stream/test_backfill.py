"""History comes before live traffic: no gap, no overlap, at an offset that the log itself shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from stream.backfill import backfill, run
from stream.errors import BackfillError
from stream.producer import ActionProducer, BatchConfig, placed
from tests.stream.workers import Deployment
from wire.kafka.consumer import spans

History = list[dict[str, Any]]


def _history(num: int = 600) -> History:
    return [
        {"user": f"u{n % 13}", "item": n, "action": "click", "timestamp": 1_700_000_000_000 + n} for n in range(num)
    ]


def _live(deployment: Deployment, num: int) -> None:
    with ActionProducer(deployment.kafka, deployment.topics.actions, BatchConfig(max_actions=7)) as producer:
        for number in range(num):
            producer.send(
                {"user": f"u{number % 13}", "item": -number, "action": "click", "timestamp": 1_800_000_000_000}
            )


def _split(deployment: Deployment, offsets: dict[int, int]) -> tuple[dict[int, History], dict[int, History]]:
    """Actions before the offsets, and from them on."""
    before, after = {0: History(), 1: History()}, {0: History(), 1: History()}
    for number, records in deployment.read(deployment.topics.actions).items():
        for record in records:
            content = msgspec.json.decode(record.value)
            side = before if record.offset < offsets[number] else after
            side[number] += content if isinstance(content, list) else [content]
    return before, after


def _shares(actions: History) -> dict[int, History]:
    return {number: [action for action in actions if placed(action, 2) == number] for number in range(2)}


def test_the_file_comes_before_the_switch_and_live_traffic_after_it(deployment: Deployment) -> None:
    history = _history()
    done = backfill(history, deployment.kafka)
    _live(deployment, 50)
    before, after = _split(deployment, done.offsets)
    assert before == _shares(history)
    for moved in (-1, 1):  # no other offset would do
        others = {number: offset + moved for number, offset in done.offsets.items()}
        assert _split(deployment, others)[0] != before
    assert sum(map(len, after.values())) == 50
    assert (done.num_actions, done.num_sent) == (600, 600)


def test_a_second_run_sends_nothing_and_switches_at_the_same_offsets(deployment: Deployment) -> None:
    first = backfill(_history(), deployment.kafka)
    _live(deployment, 20)
    second = backfill(_history(), deployment.kafka)
    assert (second.num_sent, second.offsets) == (0, first.offsets)


@pytest.mark.parametrize("num_there", [1, 250, 599])
def test_a_killed_backfill_continues_where_the_log_ends(deployment: Deployment, num_there: int) -> None:
    history = _history()
    with ActionProducer(deployment.kafka, deployment.topics.actions, BatchConfig(max_actions=11)) as producer:
        for action in history[:num_there]:
            producer.send(action)
    done = backfill(history, deployment.kafka)
    assert done.num_sent == 600 - num_there
    assert _split(deployment, done.offsets)[0] == _shares(history)


def _loses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    send = ActionProducer.send

    def lossy(self: ActionProducer, action: Any) -> None:
        if action["item"] != 444:
            send(self, action)

    monkeypatch.setattr(ActionProducer, "send", lossy)


def _sends_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there already is not looked at."""
    looks = iter([True])

    def blind(*where: Any) -> Any:
        held = spans(*where)
        return {number: replace(span, end=span.first) for number, span in held.items()} if next(looks, 0) else held

    monkeypatch.setattr("stream.backfill.spans", blind)


@pytest.mark.parametrize("breaks", [_loses_one, _sends_again])
def test_a_backfill_with_a_gap_or_an_overlap_is_caught(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with ActionProducer(deployment.kafka, deployment.topics.actions) as producer:
        for action in _history(100):
            producer.send(action)
    breaks(monkeypatch)
    with pytest.raises(BackfillError):
        backfill(_history(), deployment.kafka)


def test_live_traffic_before_its_history_is_reported_with_its_offset(deployment: Deployment) -> None:
    _live(deployment, 1)
    with pytest.raises(
        BackfillError, match=r"partition \d, offset 0: expected the file's actions from number 0.*kafka"
    ):
        backfill(_history(), deployment.kafka)


def test_live_traffic_in_the_middle_of_history_is_an_overlap(deployment: Deployment) -> None:
    history = _history()
    with ActionProducer(deployment.kafka, deployment.topics.actions) as producer:
        for action in history[:300]:
            producer.send(action)
    _live(deployment, 26)
    with pytest.raises(BackfillError, match="live traffic began before the history was complete"):
        backfill(history, deployment.kafka)


def test_the_command_says_where_live_traffic_begins(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, _history(20))))
    settings = SimpleNamespace(kafka=deployment.kafka, action=deployment.action, stream=deployment.stream)
    assert run(settings, path) == 0
    said = capsys.readouterr().out
    assert "history: 20 actions of history.jsonl, 20 of them sent now" in said
    assert said.count("live traffic begins there") == 2
