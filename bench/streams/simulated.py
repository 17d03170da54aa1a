"""Simulated live traffic (`stream.simulate`) as a trainer gets it, without a broker: a worker's examples, in steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import msgspec

from model.config import ModelConfig
from state.sequencer import Sequencer
from stream.simulate import KINDS, World, WorldConfig
from wire.action import Action, decode_record
from wire.config import ActionConfig, SequenceConfig
from wire.example import Example

ACTION = ActionConfig(kinds=KINDS, features=("genre",))
WORLDS = {
    "quick": (WorldConfig(num_users=100, num_items=100), SequenceConfig()),
    "late": (
        WorldConfig(
            num_users=100, num_items=100, actions_per_s=20.0, feedback_delay_s=5.0, late_share=0.33,
            item_lifetime_s=1800.0,
        ),
        SequenceConfig(join_window_s=3600.0),
    ),
}  # fmt: skip
MODEL = ModelConfig(kinds=KINDS, num_features=1)
PER_STEP = 64


def steps(num_actions: int, seed: int, world: str = "quick") -> Iterator[list[Example]]:
    """The examples that a worker makes of the world's actions, as they arrive."""
    config, sequence = WORLDS[world]
    sequencer = Sequencer(ACTION, sequence)
    actions = islice(World(replace(config, seed=seed)).actions(), num_actions)
    for offset, action in enumerate(actions):
        for decoded in decode_record(msgspec.json.encode(action), action["timestamp"] + 10**9, ACTION):
            assert isinstance(decoded, Action)
            sequencer.apply(decoded, offset, action["timestamp"])
        if offset % PER_STEP == PER_STEP - 1:
            yield sequencer.drain()
