"""The rules of joining and emitting, one by one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from state.sequencer import Outcome, Sequencer
from wire.action import Action, decode_record
from wire.config import ActionConfig, SequenceConfig
from wire.example import Example
from wire.hashing import item_hash

ACTION = ActionConfig(
    kinds=("see", "click", "like"), features=("genre", "maker"), user_features=("land",), min_timestamp_ms=0
)
NAMES = {item_hash(name): name for name in "abcdefgh"}
SEE, CLICK, LIKE = 1, 2, 4


class Driver:
    """Applies actions in shorthand, one record each."""

    def __init__(self, window_s: float = 0.1, **options: Any) -> None:
        self.sequencer = Sequencer(ACTION, SequenceConfig(join_window_s=window_s, **options))

    def act(self, user: str, item: str, kind: str, time_ms: int, **more: Any) -> Outcome:
        content = {"user": user, "item": item, "action": kind, "timestamp": time_ms, **more}
        (action,) = decode_record(msgspec.json.encode(content), 10**12, ACTION)
        assert isinstance(action, Action)
        return self.sequencer.apply(action, self.sequencer.applied_offset + 1, 5_000 + time_ms)

    def emitted(self) -> list[str]:
        """Examples since the last call, as in ``u0: a1 b2 new c1 feedback 0:4``."""
        return [short(example) for example in self.sequencer.drain()]


def short(example: Example) -> str:
    rows = example.interactions
    words = [
        f"{NAMES[item]}{bits}" for item, bits in zip(rows.item_hash.tolist(), rows.action_bits.tolist(), strict=True)
    ]
    if example.num_new:
        words.insert(len(words) - example.num_new, "new")
    fed = zip(example.feedback_index.tolist(), example.feedback_bits.tolist(), strict=True)
    words += [f"+{bits}@{place}" for place, bits in fed]
    return f"{example.user}{example.segment}: {' '.join(words)}"


def times_of(driver: Driver) -> list[int]:
    return [time_ms for example in driver.sequencer.drain() for time_ms in example.interactions.timestamp_ms.tolist()]


def test_an_action_is_emitted_at_once() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    assert driver.emitted() == ["u0: new a1"]
    assert driver.emitted() == []


def test_a_click_joins_its_impression_and_is_feedback() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    assert driver.emitted() == ["u0: new a1"]
    driver.act("u", "a", "click", 1100)
    assert driver.emitted() == ["u0: a3 +2@0"]


def test_what_joins_within_a_batch_is_part_of_what_is_new() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    driver.act("u", "b", "see", 1010)
    driver.act("u", "a", "click", 1020)
    assert driver.emitted() == ["u0: new a3 b1"]


def test_after_the_window_a_new_interaction_begins() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    driver.act("u", "a", "click", 1101)
    assert driver.emitted() == ["u0: new a1 a2"]


def test_without_a_window_nothing_joins() -> None:
    driver = Driver(0.0)
    driver.act("u", "a", "see", 1000)
    driver.act("u", "a", "click", 1000)
    assert driver.emitted() == ["u0: new a1 a2"]


def test_feedback_that_is_older_than_its_impression_joins_it_too() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    assert driver.act("u", "a", "click", 950) is Outcome.ACCEPTED
    assert driver.emitted() == ["u0: new a3"]
    assert driver.sequencer.counts.num_late == 0


def test_the_newest_interaction_within_the_window_is_joined() -> None:
    driver = Driver()
    for time_ms in (1000, 1200, 1400):
        driver.act("u", "a", "see", time_ms)
    driver.act("u", "a", "click", 1290)
    driver.act("u", "a", "like", 1050)
    assert driver.emitted() == ["u0: new a5 a3 a1"]


def test_an_action_that_names_a_session_joins_only_there() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000, session="one")
    driver.act("u", "a", "see", 1010, session="two")
    driver.act("u", "a", "click", 1020, session="one")
    driver.act("u", "a", "like", 1030)
    driver.act("u", "a", "click", 1040, session="three")
    (example,) = driver.sequencer.drain()
    assert short(example) == "u0: new a3 a5 a2"
    assert example.session_hash.tolist() == [item_hash("one"), item_hash("two"), item_hash("three")]


def test_times_never_decrease_and_an_action_that_needed_that_is_late() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    assert driver.act("u", "b", "see", 400) is Outcome.LATE
    assert driver.act("v", "b", "see", 400) is Outcome.ACCEPTED
    assert driver.act("u", "c", "see", 1000) is Outcome.ACCEPTED
    assert times_of(driver) == [1000, 1000, 1000, 400]
    assert driver.sequencer.counts == (4, 0, 0, 1)


def test_a_known_id_changes_nothing() -> None:
    driver = Driver()
    assert driver.act("u", "a", "see", 1000, id="x") is Outcome.ACCEPTED
    assert driver.act("u", "a", "click", 1001, id="x") is Outcome.DUPLICATE
    assert driver.act("v", "a", "see", 1001, id="x") is Outcome.ACCEPTED
    assert driver.emitted() == ["u0: new a1", "v0: new a1"]
    assert driver.sequencer.counts == (2, 1, 0, 0)


def test_ids_are_known_as_long_as_their_segment_is_kept() -> None:
    driver = Driver(segment_len=1, max_context=1)  # two segments
    driver.act("u", "a", "see", 1000, id="x")
    driver.act("u", "b", "see", 1001, id="y")
    assert driver.act("u", "c", "see", 1002, id="x") is Outcome.DUPLICATE
    driver.act("u", "c", "see", 1002, id="z")
    assert driver.act("u", "d", "see", 1003, id="x") is Outcome.ACCEPTED
    assert driver.act("u", "d", "see", 1003, id="z") is Outcome.DUPLICATE


def test_a_segment_forgets_its_oldest_ids() -> None:
    driver = Driver(segment_len=1)
    for number in range(9):
        driver.act("u", "a", "see", 1000, id=number)
    assert driver.act("u", "a", "see", 1000, id=1) is Outcome.DUPLICATE
    assert driver.act("u", "a", "see", 1000, id=0) is Outcome.ACCEPTED, "the segment keeps eight"


def test_ids_are_ignored_if_duplicates_are_wanted() -> None:
    driver = Driver(deduplicate=False)
    driver.act("u", "a", "see", 1000, id="x")
    assert driver.act("u", "a", "click", 1000, id="x") is Outcome.ACCEPTED
    (example,) = driver.sequencer.drain()
    assert (short(example), example.action_ids.tolist()) == ("u0: new a3", [])


def test_the_fields_of_a_joining_action_win() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000, value=1, domain="film", features={"genre": "jazz", "maker": 1})
    driver.act("u", "a", "click", 1001, value=2, features={"genre": "rock"})
    driver.act("u", "a", "like", 1002)
    (example,) = driver.sequencer.drain()
    rows = example.interactions
    assert rows.value.tolist() == [2.0]
    assert rows.domain_hash.tolist() == [item_hash("film")]
    assert rows.feature_hash.tolist() == [[item_hash("rock"), item_hash(1)]]


def test_what_changes_no_kind_is_emitted_and_teaches_nothing() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    driver.emitted()
    driver.act("u", "a", "see", 1001, value=2)
    assert driver.emitted() == ["u0: a1"]
    driver.act("u", "a", "see", 1001, id="x")
    assert driver.emitted() == ["u0: a1"], "after a restore the id has to be known"
    driver.act("u", "a", "see", 1001, user_features={"land": "li"})
    assert driver.emitted() == ["u0: a1"]


def test_what_changes_nothing_is_not_emitted() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000, value=2, domain="d")
    driver.emitted()
    assert driver.act("u", "a", "see", 1001, value=2, domain="d") is Outcome.ACCEPTED
    assert driver.emitted() == []
    assert driver.sequencer.counts.num_accepted == 2


def test_a_run_ends_where_another_segment_is_touched() -> None:
    driver = Driver(segment_len=2)
    for item, time_ms in (("a", 1000), ("b", 1001), ("c", 1002)):
        driver.act("u", item, "see", time_ms)
    driver.act("u", "a", "click", 1003)
    driver.act("u", "b", "click", 1004)
    driver.act("u", "d", "see", 1005)
    driver.act("u", "c", "like", 1006)
    examples = driver.sequencer.drain()
    assert [short(example) for example in examples] == [
        "u0: new a1 b1", "u1: new c1", "u0: a3 b3 +2@0 +2@1", "u1: c5 new d1 +4@0",
    ]  # fmt: skip
    assert [(example.number, example.user_offset) for example in examples] == [(0, 1), (1, 2), (2, 4), (3, 6)]
    assert [example.first_new_index for example in examples if example.num_new] == [0, 2, 3]


def test_only_kept_segments_are_joined() -> None:
    driver = Driver(segment_len=1, max_context=1)
    for item in "abc":
        driver.act("u", item, "see", 1000)
    driver.act("u", "b", "click", 1001)
    driver.act("u", "a", "click", 1001)
    assert driver.emitted()[3:] == ["u1: b3 +2@0", "u3: new a2"]


def test_a_name_travels_once() -> None:
    driver = Driver(0.0)
    driver.act("u", "a", "see", 1000)
    driver.act("v", "a", "see", 1001)
    driver.act("v", "b", "see", 1001)
    first, second = driver.sequencer.drain()
    assert (first.names, second.names) == ({item_hash("a"): "a"}, {item_hash("b"): "b"})


def test_a_restored_worker_resumes_at_the_batch_until_all_of_it_is_emitted() -> None:
    driver = Driver()
    for user in "uvw":
        driver.act(user, "a", "see", 1000)
    assert [e.resume_from_offset for e in driver.sequencer.drain()] == [0, 0, 3]
    driver.sequencer.advance(7, 1)
    for user in "uv":
        driver.act(user, "b", "see", 1001)
    examples = driver.sequencer.drain()
    assert [(e.applied_offset, e.counted_offset, e.resume_from_offset) for e in examples] == [(9, 9, 3), (9, 9, 10)]


def test_an_example_has_the_times_of_its_newest_record_and_of_the_newest_event() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    driver.act("u", "a", "click", 1050)
    driver.act("v", "a", "see", 1010)
    assert [(e.newest_event_ms, e.newest_record_ms) for e in driver.sequencer.drain()] == [(1050, 6050), (1050, 6010)]


def test_records_that_are_not_actions_are_counted() -> None:
    driver = Driver()
    driver.sequencer.advance(0, 1)
    driver.sequencer.reject(0)
    assert driver.sequencer.counts == (0, 0, 1, 0)


def test_offsets_have_to_increase() -> None:
    driver = Driver()
    driver.sequencer.advance(0, 1)
    with pytest.raises(ValueError, match="expected above 0, got 0"):
        driver.sequencer.advance(0, 0)
