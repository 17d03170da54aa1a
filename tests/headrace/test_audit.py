"""The audit compares its evidence: what never arrived is found once nothing is in flight, and not before."""

import json
from dataclasses import replace
from typing import Any

import pytest

import headrace.audit
from headrace.audit import show
from headrace.demo import conclude
from headrace.evidence import Evidence
from headrace.recount import Recount
from headrace.report import Check, Report
from tests.headrace.test_ledger import ACTION, SEQUENCE, Record, examples, ledger_of
from wire.example import Example, rows_of
from wire.partitioner import partition_of
from wire.status import PartitionStatus

NUM_ACTIONS = 6


@pytest.fixture
def evidence() -> Evidence:
    """Six actions and a malformed record, all applied; the example of the last two actions never arrived."""
    recount = Recount(ACTION, SEQUENCE, 0, 1)
    recount.watch_users = {"a": (2, 0), "b": (3, 0)}
    for batch in range(3):
        for index, user in enumerate(("a", "b")):
            value = f'{{"user":"{user}","item":{batch},"action":"rate","timestamp":{100 * batch}}}'.encode()
            recount.feed(Record(2 * batch + index, value))
    recount.feed(Record(NUM_ACTIONS, b"{"))
    recount.drain()
    ledgers = {0: ledger_of(examples()[:4])}
    return Evidence(recounts={0: recount}, ledgers=ledgers, ends={0: NUM_ACTIONS + 1}, whole={0})


@pytest.mark.parametrize(
    ("status", "num_lost"),
    [
        (PartitionStatus(applied_offset=NUM_ACTIONS), 2),
        (PartitionStatus(applied_offset=NUM_ACTIONS, outbox_len=1), 0),
        (PartitionStatus(applied_offset=NUM_ACTIONS - 1), 0),
        (None, 0),
    ],
    ids=["settled", "in the outbox", "not applied", "no worker"],
)
def test_interactions_that_never_arrived_are_found_once_nothing_is_in_flight(
    evidence: Evidence, status: PartitionStatus | None, num_lost: int
) -> None:
    evidence.statuses = {} if status is None else {0: status}
    check = evidence.content()
    assert check.violations.num == num_lost
    assert all("1 interactions never arrived" in words for words in check.violations)


COLUMNS = ("item_hash", "action_bits", "timestamp_ms", "domain_hash", "value")


@pytest.mark.parametrize("column", COLUMNS)
def test_an_interaction_that_arrived_changed_is_found(evidence: Evidence, column: str) -> None:
    def checked(stream: list[Example]) -> int:
        evidence.ledgers = {0: ledger_of(stream)}
        return evidence.content().violations.num

    evidence.statuses = {0: PartitionStatus(applied_offset=NUM_ACTIONS)}
    assert checked(examples()) == 0
    stream = examples()
    rows = stream[-1].interactions
    values = getattr(rows, column).copy()
    values[-1] = 7
    wrong = replace(rows, **{column: values})
    assert checked([*stream[:-1], replace(stream[-1], rows=rows_of(wrong))]) == 1


@pytest.mark.parametrize(("outbox_len", "num_lost"), [(0, 1), (1, 0)])
def test_a_dead_letter_that_never_arrived_is_found_once_nothing_is_in_flight(
    evidence: Evidence, outbox_len: int, num_lost: int
) -> None:
    evidence.statuses = {0: PartitionStatus(applied_offset=NUM_ACTIONS, outbox_len=outbox_len)}
    assert evidence.dead_letters().violations.num == num_lost
    evidence.dead = {(0, NUM_ACTIONS, -1)}
    assert evidence.dead_letters().violations.num == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_a_violation_is_the_commands_exit_status(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report([Check("nothing is lost", "", 1, 1)], {})
    monkeypatch.setattr(headrace.audit, "audit", lambda _settings: report)
    settings: Any = None
    assert show(settings, as_json=as_json) == 0
    report.checks[0].violations.add("an action is gone")
    capsys.readouterr()
    assert show(settings, as_json=as_json) == 1
    said = capsys.readouterr()
    assert "an action is gone" in said.out
    if as_json:
        assert json.loads(said.out)["passed"] is False
    else:
        assert said.err == "headrace: the audit found violations\n"


def test_a_demo_whose_audit_finds_something_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    summary: dict[str, Any] = {
        **dict.fromkeys(("actions_in", "interactions_trained", "dead_letters", "versions_published"), 1),
        **dict.fromkeys(("hr10", "hr10_counts", "hr10_popular", "ne", "ne_popular"), 0.5),
        **dict.fromkeys(("freshness_p50_s", "actions_per_s"), 0.5),
        "version_served": "0/1", "new_actions": [],
    }  # fmt: skip
    report = Report([Check("nothing is lost", "", 1, 1)], {})
    assert conclude(report, summary, as_json=True) == 0
    report.checks[0].violations.add("an action is gone")
    assert conclude(report, summary, as_json=True) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary


def test_a_request_about_an_item_counts_in_its_partition_alone() -> None:
    home = partition_of(b"5", 4)
    for partition in range(4):
        recount = Recount(ACTION, SEQUENCE, partition, 4)
        recount.feed(Record(0, b'{"forget":true,"item":5}'))
        assert recount.dead == (set() if partition == home else {(0, -1)})
        assert not recount.forgotten
