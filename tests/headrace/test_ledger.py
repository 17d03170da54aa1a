"""The audit's ledgers: each kind of loss, doubling and disorder is found; what compaction removed is not lost."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.evidence import Evidence
from headrace.ledger import SequenceLedger, Violations
from headrace.plan_ledger import PlanLedger, trained
from headrace.recount import Recount
from state.sequencer import Sequencer
from wire.action import Action, decode_record
from wire.config import ActionConfig, SequenceConfig
from wire.example import Example
from wire.status import PartitionStatus
from wire.weights import Manifest

ACTION = ActionConfig(kinds=("rate",), min_timestamp_ms=0)
SEQUENCE = SequenceConfig(join_window_s=0.0)


def action(user: str, item: int, time_ms: int) -> Action:
    value = f'{{"user":"{user}","item":{item},"action":"rate","timestamp":{time_ms}}}'.encode()
    (decoded,) = decode_record(value, 10_000, ACTION)
    assert isinstance(decoded, Action)
    return decoded


def examples() -> list[Example]:
    """Six examples: two users, three batches."""
    sequencer = Sequencer(ACTION, SEQUENCE)
    found = []
    for batch in range(3):
        for user in ("a", "b"):
            sequencer.apply(action(user, batch, 100 * batch), sequencer.applied_offset + 1, 0)
        found += sequencer.drain()
    return found


def ledger_of(stream: list[Example], offsets: list[int] | None = None) -> SequenceLedger:
    ledger = SequenceLedger(0)
    for offset, example in zip(offsets or range(len(stream)), stream, strict=True):
        ledger.feed(offset, example)
    return ledger


def manifest(
    number: int, first_step: int, plan: list[list[tuple[int, int, int]]], epoch: int = 1, **more: Any
) -> Manifest:
    nothing: dict[str, Any] = dict.fromkeys(
        ("base_number", "base_offset", "num_chunks", "num_bytes", "newest_event_ms", "newest_record_ms"), 0
    )
    nothing |= dict.fromkeys(("num_interactions", "created_ms"), 0) | {"onto_number": number - 1, "lineage": "one"}
    nothing |= dict.fromkeys(("model_id", "kind", "checksum"), "")
    nothing |= {name: {} for name in ("covered", "covered_offsets", "model_config", "metrics")}
    return Manifest(**{**nothing, **more}, epoch=epoch, number=number, plan=plan, first_step=first_step)


def test_a_whole_stream_is_in_order() -> None:
    ledger = ledger_of(examples())
    assert (ledger.num_interactions, ledger.num_feedback, ledger.lost.num, ledger.not_once.num) == (6, 0, 0, 0)
    assert {name: user.num for name, user in ledger.users.items()} == {"a": 3, "b": 3}


def test_what_a_relay_repeats_is_ignored() -> None:
    stream = examples()
    ledger = ledger_of(stream[:4] + stream[2:])
    assert (ledger.num_interactions, ledger.num_duplicates, ledger.lost.num) == (6, 2, 0)


def test_a_missing_example_is_lost_and_its_user_has_a_gap() -> None:
    stream = examples()
    ledger = ledger_of(stream[:2] + stream[3:])
    assert ledger.lost == ["partition 0: expected example 2, got 3"]
    assert ledger.not_once.num == 1


def test_what_compaction_removed_is_not_lost() -> None:
    stream = examples()
    ledger = ledger_of(stream[:2] + stream[3:], [0, 1, 3, 4, 5])
    assert (ledger.lost.num, ledger.num_missing, ledger.not_once.num) == (0, 1, 0)


def test_an_interaction_that_is_delivered_twice_under_two_numbers_is_found() -> None:
    stream = examples()
    again = replace(stream[5], number=6)
    assert ledger_of([*stream, again]).not_once.num == 1


def late_like() -> list[Example]:
    """An impression, a later like for it, and another impression."""
    action = ActionConfig(kinds=("impression", "like"), min_timestamp_ms=0)
    sequencer, found = Sequencer(action, SequenceConfig()), list[Example]()
    for item, kind in ((1, "impression"), (1, "like"), (2, "impression")):
        value = f'{{"user":"a","item":{item},"action":"{kind}","timestamp":{100 * item}}}'.encode()
        (decoded,) = decode_record(value, 10_000, action)
        assert isinstance(decoded, Action)
        sequencer.apply(decoded, sequencer.applied_offset + 1, 0)
        found += sequencer.drain()
    return found


def test_later_kinds_are_pieces_of_their_own() -> None:
    ledger = ledger_of(late_like())
    assert [tuple(ledger.pieces[number]) for number in range(3)] == [(1, 0), (0, 1), (1, 0)]
    assert (ledger.num_interactions, ledger.num_feedback, ledger.not_once.num) == (2, 1, 0)


@pytest.mark.parametrize("wrong", ["marked twice", "not marked", "another one's"])
def test_a_later_kind_that_is_not_delivered_exactly_once_is_found(wrong: str) -> None:
    first, like, second = late_like()
    if wrong == "marked twice":
        stream = [first, like, replace(like, number=2), replace(second, number=3)]
    elif wrong == "not marked":
        none = like.feedback_index[:0]
        stream = [first, replace(like, feedback_index=none, feedback_bits=like.feedback_bits[:0]), second]
    else:
        stream = [first, replace(like, feedback_bits=like.feedback_bits | 1), second]
    assert ledger_of(stream).not_once.num == 1


PLAN = [[(0, 0, 1)], [(0, 2, 2)], [(0, 3, 5)]]


def followed(*manifests: Manifest) -> tuple[PlanLedger, Violations, int]:
    plans, violations = PlanLedger(), Violations()
    for each in manifests:
        plans.feed(each)
    found = trained(plans.current, {0: ledger_of(examples())}, violations)
    return plans, violations, sum(each.num_interactions for each in found.values())


def test_steps_that_name_each_example_once_are_right() -> None:
    plans, violations, num = followed(manifest(0, 0, []), manifest(1, 0, PLAN[:2]), manifest(2, 2, PLAN[2:]))
    assert (plans.gaps.num, violations.num, num) == (0, 0, 6)


def test_a_new_epoch_may_publish_steps_again_as_they_were() -> None:
    plans, violations, num = followed(manifest(0, 0, PLAN[:2]), manifest(0, 1, PLAN[1:], epoch=2))
    assert (plans.gaps.num, plans.changes.num, violations.num, num) == (0, 0, 0, 6)
    assert plans.current.num_repeated == 1


def test_a_published_step_that_is_trained_differently_is_found() -> None:
    plans, _, _ = followed(manifest(0, 0, PLAN[:2]), manifest(0, 1, [[(0, 2, 4)], [(0, 5, 5)]], epoch=2))
    assert plans.changes.num == 1


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ([[(0, 0, 1)], [(0, 1, 5)]], "again"),
        ([[(0, 0, 1)], [(0, 3, 5)]], "skipping some"),
        ([[(0, 0, 1)], [(0, 2, 6)]], "never held: 6"),
        ([[(1, 0, 0)]], "never held: 0"),
    ],
)
def test_training_twice_not_at_all_or_what_is_not_there_is_found(
    plan: list[list[tuple[int, int, int]]], words: str
) -> None:
    _, violations, _ = followed(manifest(0, 0, plan))
    assert any(words in each for each in violations)


def test_steps_that_were_never_published_are_found() -> None:
    plans, _, _ = followed(manifest(0, 0, PLAN[:1]), manifest(1, 2, PLAN[2:]))
    assert plans.gaps.num == 1


def test_another_lineage_starts_over() -> None:
    plans, violations, num = followed(manifest(0, 0, PLAN), manifest(0, 0, PLAN[:1], epoch=2, lineage="two"))
    assert (plans.gaps.num, violations.num, num) == (0, 0, 2)


class Record:
    """The part of a Kafka record that the recount uses."""

    def __init__(self, offset: int, value: bytes | None) -> None:
        self.offset, self.value, self.timestamp = offset, value, 10_000


def test_the_recount_adds_up_and_names_the_dead_letters() -> None:
    recount = Recount(ACTION, SEQUENCE, 0, 1)
    good = b'{"user":"a","item":1,"action":"rate","timestamp":5,"id":"x"}'
    for offset, value in enumerate([good, good, None, b"[" + good + b',{"user":1}]', b"{"]):
        recount.feed(Record(offset, value))
    recount.drain()
    counts = recount.sequencer.counts
    assert counts[:3] == (1, 2, 3)
    assert recount.num_produced == 6
    assert recount.dead == {(2, -1), (3, 1), (4, -1)}
    assert recount.num_interactions == 1


def test_the_recount_remembers_a_user_as_of_a_watched_action() -> None:
    recount = Recount(ACTION, SEQUENCE, 0, 1)
    recount.watch_users = {"a": (1, 1)}
    one = b'{"user":"a","item":%d,"action":"rate","timestamp":%d}'
    for offset in range(4):
        recount.feed(Record(offset, b"[" + b",".join(one % (10 * offset + i, offset) for i in range(3)) + b"]"))
    recount.drain()
    assert recount.users["a"].end == 12
    assert recount.users_at["a"].end == 5


def test_the_recount_refuses_a_user_of_another_partition() -> None:
    recount = Recount(ACTION, SEQUENCE, 0, 1000)
    recount.feed(Record(0, b'[{"user":"a","item":1,"action":"rate","timestamp":5}]'))
    assert recount.dead == {(0, 0)}


def test_a_step_that_was_set_aside_trains_nothing() -> None:
    plans, ledger, violations = PlanLedger(), ledger_of(examples()), Violations()
    plans.feed(manifest(0, 0, [[(0, 0, 2)], [(0, 3, 5)]], set_aside=[1]))
    found = trained(plans.current, {0: ledger}, violations)
    assert (found[0].last, found[0].num_interactions, violations.num) == (5, 3, 0)


def test_a_line_that_began_from_a_published_version_is_audited_with_what_came_before() -> None:
    plans, ledger, violations = PlanLedger(), ledger_of(examples()), Violations()
    plans.feed(manifest(0, 0, [[(0, 0, 1)], [(0, 2, 2)], [(0, 3, 5)]]))
    plans.feed(manifest(0, 2, [[(0, 3, 3)], [(0, 4, 5)]], epoch=2, lineage="two", parent="one"))
    found = trained(plans.current, {0: ledger}, violations)
    assert plans.current.first_step == 0
    assert (found[0].last, found[0].num_interactions, violations.num) == (5, 6, 0)


@pytest.mark.parametrize(("next_number", "caught"), [(2, "again"), (4, "skipping some")])
def test_a_line_that_began_at_another_place_than_its_version_is_found(next_number: int, caught: str) -> None:
    plans, violations = PlanLedger(), Violations()
    plans.feed(manifest(0, 0, [[(0, 0, 1)], [(0, 2, 2)]]))
    plans.feed(manifest(0, 2, [[(0, next_number, 5)]], epoch=2, lineage="two", parent="one"))
    trained(plans.current, {0: ledger_of(examples())}, violations)
    assert violations.num == 1
    assert caught in violations[0]


def test_a_plan_that_was_cut_is_found() -> None:
    plans = PlanLedger()
    plans.feed(manifest(0, 0, [[(0, 0, 1)]]))
    plans.feed(manifest(1, 3, [[(0, 4, 5)]]))
    assert plans.gaps == ["version 1/1 begins with step 3; steps 1 to 2 were never published"]


@pytest.mark.parametrize(("applied", "outbox_len", "num_missing"), [(None, 0, 0), (4, 0, 0), (5, 1, 0), (5, 0, 1)])
def test_a_dead_letter_is_missing_once_a_worker_says_that_it_has_sent_everything(
    applied: int | None, outbox_len: int, num_missing: int
) -> None:
    evidence = Evidence()
    recount = Recount(ActionConfig(), SequenceConfig(), 0, 1)
    recount.dead.add((5, -1))
    evidence.recounts[0] = recount
    if applied is not None:
        evidence.statuses[0] = PartitionStatus(applied_offset=applied, outbox_len=outbox_len)
    assert evidence.dead_letters().violations.num == num_missing
