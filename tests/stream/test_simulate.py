"""The simulated world: the same from the same seed, and changing over time."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice, pairwise

import msgspec
import pytest

from stream.live import moved_to_now
from stream.simulate import KINDS, World, WorldConfig
from wire.action import Action, decode_record
from wire.config import ActionConfig


def _actions(num: int, **config: object) -> list[dict[str, object]]:
    return list(islice(World(WorldConfig(num_users=50, num_items=100, **config)).actions(), num))  # type: ignore[arg-type]


def test_same_seed_same_actions() -> None:
    assert _actions(2_000, seed=7) == _actions(2_000, seed=7)
    assert _actions(2_000, seed=7) != _actions(2_000, seed=8)


def test_every_action_is_well_formed() -> None:
    config = ActionConfig(kinds=KINDS, features=("genre",))
    for action in _actions(500):
        decoded = decode_record(msgspec.json.encode(action), int(str(action["timestamp"])), config)
        assert [type(one) for one in decoded] == [Action]


def test_ids_are_unique() -> None:
    ids = [action["id"] for action in _actions(5_000)]
    assert len(set(ids)) == len(ids)


def test_items_are_born_and_die() -> None:
    actions = _actions(20_000, item_lifetime_s=20.0)
    first, last = ({action["item"] for action in part} for part in (actions[:2_000], actions[-2_000:]))
    # Late feedback may name an item that is gone.
    assert len(first & last) < 0.1 * len(last)


def test_feedback_follows_its_impression() -> None:
    shown: set[tuple[object, object]] = set()
    late = 0
    for action in _actions(5_000):
        key = (action["session"], action["item"])
        if action["action"] == "impression":
            shown.add(key)
        elif key not in shown:
            late += 1
    # Impressions are delayed too; few arrive after their click.
    assert late < 150


def test_the_world_makes_several_kinds_and_only_configured_ones() -> None:
    counts = Counter(action["action"] for action in _actions(5_000))
    assert set(counts) == set(KINDS)
    assert counts["impression"] > counts["click"] > counts["like"] > counts["share"]
    assert {action["action"] for action in _actions(500, kinds=("click", "like"))} == {"click", "like"}


def test_a_session_follows_an_interest() -> None:
    # What was clicked in a session says more about the next click there than about another session's.
    clicks = [action for action in _actions(20_000, preference_drift=0.0) if action["action"] == "click"]
    by_session: dict[object, list[object]] = {}
    for action in clicks:
        features = action["features"]
        assert isinstance(features, dict)
        by_session.setdefault(action["session"], []).append(features["genre"])
    pairs = [(a, b) for genres in by_session.values() for a, b in pairwise(genres)]
    same = sum(a == b for a, b in pairs) / len(pairs)
    shares = Counter(genre for genres in by_session.values() for genre in genres)
    by_chance = sum((num / shares.total()) ** 2 for num in shares.values())
    assert same > 1.3 * by_chance


def test_live_actions_are_of_now_and_never_of_the_future() -> None:
    actions = list(islice(moved_to_now(World(WorldConfig()).actions(), WorldConfig().start_ms), 1_000))
    now_ms = time.time() * 1000
    assert all(now_ms - 60_000 < action["timestamp"] <= now_ms for action in actions)


def test_a_world_that_is_simulated_again_repeats_no_action(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for began_ms in (1_764_000_000_000, 1_764_003_600_000):
        monkeypatch.setattr(time, "time_ns", lambda began_ms=began_ms: began_ms * 1_000_000)
        runs.append(list(islice(moved_to_now(World(WorldConfig()).actions(), WorldConfig().start_ms), 1_000)))
    for name in ("id", "session"):
        first, again = ({action[name] for action in run} for run in runs)
        assert not first & again
    assert len({action["id"] for run in runs for action in run}) == 2_000


@pytest.mark.parametrize(
    ("key", "value"), [("num_users", 0), ("actions_per_s", 0.0), ("late_share", 1.5), ("kinds", ("buy",))]
)
def test_a_wrong_world_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key}: expected .*, got "):
        WorldConfig(**{key: value})  # type: ignore[arg-type]
