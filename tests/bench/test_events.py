"""What rivals are asked is what Headrace was asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.single_pass import headrace
from bench.streams.events import ranks
from kernels.memory import MemoryEvents
from stream.simulate import World, WorldConfig
from tests.bench.samples import Actions, chain, settings_of, steps_of
from trainer.metrics.prequential import rank_among


def _world(num: int) -> Actions:
    world = World(WorldConfig(num_users=40, num_items=60)).actions()
    return [next(world) for _ in range(num)]


@pytest.mark.parametrize("actions", [chain(), _world(900)], ids=["chain", "late feedback"])
def test_rivals_meet_the_events_that_headrace_met_in_its_order(
    actions: Actions, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[MemoryEvents] = []
    from model.memory import Memory

    learn = Memory.learn
    monkeypatch.setattr(Memory, "learn", lambda self, events, logits: met.append(events) or learn(self, events, logits))
    done = headrace(settings_of(actions), actions, seed=1)
    found = [step.events for step in steps_of(actions)]
    ours, theirs = (np.concatenate([part.target_R for part in parts]) for parts in (found, met))
    chosen, wanted = (np.concatenate([part.chosen_R for part in parts]) for parts in (found, met))
    np.testing.assert_array_equal(chosen, wanted)
    assert len(set(zip(ours.tolist(), theirs.tolist(), strict=True))) == len(set(ours.tolist()))  # other numbers alone
    for name in ("past", "met"):
        lengths = [
            np.concatenate([getattr(part, f"{name}_end_R") - getattr(part, f"{name}_begin_R") for part in parts])
            for parts in (found, met)
        ]
        np.testing.assert_array_equal(*lengths)
    assert len(done.ranks["Headrace"]) == chosen.sum()


def test_counting_alone_is_ranked_as_headrace_ranks_it() -> None:
    """The rank of an item by the same scores is that of Headrace's own kernel, whoever numbers the items."""
    actions = chain(num_items=40)
    settings = settings_of(actions)
    trainer = replace(settings.trainer, exclude_seen=False)
    done = headrace(settings.model_copy(update={"trainer": trainer}), actions, seed=1)
    known_at_once = [step.events.target_R[step.asked] <= step.num_known_E[step.asked] for step in steps_of(actions)]
    np.testing.assert_array_equal(done.ranks["Headrace"] > 0, np.concatenate(known_at_once))


def test_ties_count_half_and_what_is_left_out_does_not_compete() -> None:
    scores = np.array([99.0, 1.0, 3.0, 2.0, 2.0, 2.0])
    assert rank_among(scores, 3, ()) == 1 + 1 + 1
    assert rank_among(scores, 3, np.array([2, 2, 4], np.int32)) == 1 + 1
    assert rank_among(scores, 3, np.array([3], np.int32)) == 3  # the item itself always competes


def test_an_item_that_nobody_has_met_is_a_miss() -> None:
    actions = chain(num=5, num_users=1, num_items=50)
    first = steps_of(actions)[0]
    assert ranks(first, np.zeros((len(first.asked), 60))).tolist()[0] == 0


def test_what_was_met_is_left_out_only_where_nobody_repeats() -> None:
    repeats = steps_of(chain())
    assert not repeats[-1].leaves_out_E.any()
    once = [{**action, "item": number} for number, action in enumerate(chain())]
    once += [{**once[-1], "item": 3, "timestamp": once[-1]["timestamp"] + 1}]
    last = steps_of(once)[-1]
    assert last.leaves_out_E[-1]
    scores = np.zeros((len(last.asked), 1 + last.num_known))
    at = max(a for a, e in enumerate(last.asked.tolist()) if len(last.met(e)) and ranks(last, scores)[a])
    last.met(int(last.asked[at]))[-1] = last.events.target_R[last.asked[at]]
    assert ranks(last, scores)[at] == 0, "no server recommends it again"
