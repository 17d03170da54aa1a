"""The published protocol: one item a user is held out, and everything else is learned in the order in which it came."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from bench.published import Experiment, Users, command, sequences
from tests.bench.samples import START_MS


def _users(num_users: int = 40, num_items: int = 20, length: int = 12) -> Users:
    rng = np.random.default_rng(0)
    actions = [
        {"user": user, "item": (start + number) % num_items, "timestamp": START_MS + 1000 * number}
        for user, start in enumerate(rng.integers(0, num_items, num_users).tolist())
        for number in range(length)
    ]
    return sequences(actions)


def test_the_last_item_is_never_read_in_training_and_is_the_target_at_the_end() -> None:
    users = _users(num_users=3)
    learned, asked = (users.batch(np.arange(3), last=last) for last in (1, 0))
    ends = users.starts[1:] - 1
    np.testing.assert_array_equal(asked.target_T[asked.offsets_B1[1:] - 1], users.item[ends])
    assert len(learned.item_T) == 3 * 10
    np.testing.assert_array_equal(learned.target_T[learned.offsets_B1[1:] - 1], users.item[ends - 1])
    np.testing.assert_array_equal(learned.item_T[1:10], learned.target_T[:9])


def test_a_sequence_keeps_its_newest_two_hundred() -> None:
    users = _users(num_users=1, num_items=1000, length=500)
    batch = users.batch(np.arange(1), last=0)
    np.testing.assert_array_equal(batch.item_T, users.item[-201:-1])


def test_what_the_last_item_is_changes_nothing_that_is_learned() -> None:
    users = _users()
    other = Users(users.starts, users.item.copy(), users.time_ms)
    other.item[users.starts[1:] - 1] = 1
    weights = []
    for each in (users, other):
        experiment = Experiment(each, large=False, seed=1, device="cpu")
        experiment.epoch()
        weights.append(experiment.model.item_VD.detach())
    torch.testing.assert_close(*weights)


def test_what_follows_what_is_learned_and_a_run_in_pieces_is_the_run(tmp_path: Path) -> None:
    users = _users(num_items=200, num_users=80)
    whole = Experiment(users, large=False, seed=1, device="cpu")
    before = whole.evaluate()["hr10"]
    for _ in range(30):
        whole.epoch()
    assert whole.evaluate()["hr10"] > before + 0.3
    first = Experiment(users, large=False, seed=1, device="cpu")
    first.epoch()
    first.save(tmp_path / "state")
    second = Experiment(users, large=False, seed=1, device="cpu")
    second.load(tmp_path / "state")
    both = [first.epoch(), second.epoch()]
    assert both[0] == both[1]


def test_the_command_goes_on_from_its_state(tmp_path: Path) -> None:
    users = _users()
    np.savez(tmp_path / "s.npz", starts=users.starts, item=users.item, time_ms=users.time_ms)
    words = ["--sequences", str(tmp_path / "s.npz"), "--state", str(tmp_path / "state"), "--evaluate-every", "1"]
    assert command([*words, "--epochs", "2"]) == 0
    assert command([*words, "--epochs", "3", "--out", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [each["epoch"] for each in report["history"]] == [1, 2, 3]
