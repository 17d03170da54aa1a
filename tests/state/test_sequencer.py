"""The rules of joining and sealing, one by one."""

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


class Driver:
    """Applies actions written short, one record each."""

    def __init__(self, window_s: float = 0.1, **options: Any) -> None:
        self.sequencer = Sequencer(ACTION, SequenceConfig(join_window_s=window_s, **options))

    def act(self, user: str, item: str, kind: str, time_ms: int, **more: Any) -> Outcome:
        content = {"user": user, "item": item, "action": kind, "timestamp": time_ms, **more}
        (action,) = decode_record(msgspec.json.encode(content), 10**12, ACTION)
        assert isinstance(action, Action)
        return self.sequencer.apply(action, self.sequencer.applied_offset + 1, 5_000 + time_ms)

    def tick(self, time_ms: int) -> None:
        self.sequencer.tick(time_ms, self.sequencer.applied_offset + 1, 5_000 + time_ms)

    def new(self) -> list[tuple[str, str, int, int]]:
        """(user, item, bits, time) of everything new."""
        names = {item_hash(name): name for name in "abcdefgh"}
        return [
            (e.user, names[int(rows.item_hash[i])], int(rows.action_bits[i]), int(rows.timestamp_ms[i]))
            for e in self.sequencer.drain()
            for rows in [e.interactions]
            for i in range(e.num_context, len(rows))
        ]


def test_a_click_joins_its_impression_while_that_is_open() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    driver.act("u", "a", "click", 1099)
    assert driver.new() == []
    driver.tick(1100)
    assert driver.new() == [("u", "a", 0b011, 1000)]


def test_at_the_end_of_the_window_it_is_sealed_before_the_action_that_ends_it() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    driver.act("u", "a", "click", 1100)
    driver.tick(1200)
    assert driver.new() == [("u", "a", 0b001, 1000), ("u", "a", 0b010, 1100)]


def test_another_users_action_moves_the_clock_too() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    driver.act("v", "b", "see", 1100)
    assert driver.new() == [("u", "a", 0b001, 1000)]


def test_without_a_window_each_action_is_an_interaction_at_once() -> None:
    driver = Driver(0.0)
    outcomes = [
        driver.act("u", "a", "see", 1000),
        driver.act("u", "a", "click", 1000),
        driver.act("u", "b", "see", 1001),
    ]
    assert outcomes == [Outcome.ACCEPTED] * 3
    assert driver.new() == [("u", "a", 1, 1000), ("u", "a", 2, 1000), ("u", "b", 1, 1001)]


def test_a_user_is_sealed_by_time_then_arrival() -> None:
    driver = Driver()
    for item, time_ms in (("c", 1050), ("a", 1010), ("b", 1010), ("d", 1050)):
        driver.act("u", item, "see", time_ms)
    driver.tick(2000)
    assert [item for _, item, _, _ in driver.new()] == ["a", "b", "c", "d"]


def test_a_late_action_is_kept_in_order_by_a_later_time() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    driver.tick(1200)
    assert driver.act("u", "a", "click", 950) is Outcome.LATE
    assert driver.act("u", "b", "see", 1000) is Outcome.LATE
    assert driver.act("u", "c", "see", 1100) is Outcome.ACCEPTED
    assert driver.new() == [("u", "a", 1, 1000), ("u", "a", 2, 1000), ("u", "b", 1, 1000), ("u", "c", 1, 1100)]
    assert driver.sequencer.counts.num_late == 2


def test_a_known_id_changes_nothing() -> None:
    driver = Driver(max_recent_ids=2)
    assert driver.act("u", "a", "see", 1000, id="x") is Outcome.ACCEPTED
    assert driver.act("u", "a", "click", 1001, id="x") is Outcome.DUPLICATE
    assert driver.act("v", "a", "see", 1001, id="x") is Outcome.ACCEPTED
    driver.act("u", "b", "see", 1002, id="y")
    driver.act("u", "c", "see", 1003, id="z")
    assert driver.act("u", "a", "like", 1004, id="x") is Outcome.ACCEPTED, "only the last two ids are remembered"
    driver.tick(2000)
    assert next(one for one in driver.new() if one[0] == "u") == ("u", "a", 0b101, 1000)
    assert driver.sequencer.counts == (5, 1, 0, 0, 1)


def test_what_a_joining_action_brings_wins() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000, value=1, domain="film", features={"genre": "jazz", "maker": 1})
    driver.act("u", "a", "click", 1001, value=2, features={"genre": "rock"})
    driver.act("u", "a", "like", 1002)
    driver.tick(2000)
    (example,) = driver.sequencer.drain()
    rows = example.interactions
    assert rows.value.tolist() == [2.0]
    assert rows.domain_hash.tolist() == [item_hash("film")]
    assert rows.feature_hash.tolist() == [[item_hash("rock"), item_hash(1)]]


def test_the_oldest_is_sealed_early_where_a_user_holds_too_many_open() -> None:
    driver = Driver(max_open=2)
    for item, time_ms in (("b", 1001), ("a", 1000), ("c", 1002)):
        driver.act("u", item, "see", time_ms)
    assert driver.new() == [("u", "a", 1, 1000)]
    assert driver.act("u", "d", "see", 999) is Outcome.LATE
    assert driver.new() == [("u", "d", 1, 1000)]


def drained(num_actions: int, **options: Any) -> list[Example]:
    driver = Driver(0.0, **options)
    for number in range(num_actions):
        driver.act("u", "abcdefgh"[number % 8], "see", 1000 + number)
    return driver.sequencer.drain()


def test_examples_tile_a_life_and_bring_their_context() -> None:
    examples = drained(11, max_new=4, max_context=3)
    assert [(e.number, e.first_new_index, e.num_new, e.num_context) for e in examples] == [
        (0, 0, 4, 0), (1, 4, 4, 3), (2, 8, 3, 3),
    ]  # fmt: skip


def test_a_clock_that_jumps_over_many_gives_examples_that_know_the_rest() -> None:
    driver = Driver(max_new=2)
    for number in range(5):
        driver.act("u", "abcde"[number], "see", 1000 + number)
    driver.tick(2000)
    examples = driver.sequencer.drain()
    assert [(e.num_new, e.num_unsent, len(e.open_interactions)) for e in examples] == [(2, 3, 3), (2, 1, 1), (1, 0, 0)]
    assert examples[0].open_interactions.timestamp_ms.tolist() == [1002, 1003, 1004]


def test_a_name_travels_once() -> None:
    driver = Driver(0.0)
    driver.act("u", "a", "see", 1000)
    driver.act("v", "a", "see", 1001)
    driver.act("v", "b", "see", 1001)
    first, second = driver.sequencer.drain()
    assert (first.names, second.names) == ({item_hash("a"): "a"}, {item_hash("b"): "b"})


def test_replay_starts_at_the_first_action_that_no_example_covers() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)  # offset 0
    driver.act("v", "b", "see", 1050)  # offset 1
    driver.act("w", "c", "see", 1110)  # offset 2 seals u
    (example,) = driver.sequencer.drain()
    assert (example.user, example.applied_offset, example.replay_from_offset) == ("u", 2, 1)
    assert (example.replay_clock_ms, example.clock_ms) == (1000, 1110)
    driver.tick(3000)
    assert [e.replay_from_offset for e in driver.sequencer.drain()] == [2, 4]


def test_freshness_is_that_of_the_newest_action_covered() -> None:
    driver = Driver()
    driver.act("u", "a", "see", 1000)
    driver.act("u", "a", "click", 1050)
    driver.tick(1100)
    (example,) = driver.sequencer.drain()
    assert (example.newest_event_ms, example.newest_record_ms) == (1000, 6050)


def test_offsets_have_to_rise() -> None:
    driver = Driver()
    driver.tick(1)
    with pytest.raises(ValueError, match="expected above 0, got 0"):
        driver.sequencer.tick(1, 0, 0)
