"""What the bits and columns of examples mean, and the rules behind them, stated by their worker in its fence.

Bits stand for kinds, and columns for features, by number: a reader with a different configuration would take a click
for a like, and nothing in an example would show it. With another number of partitions, users would begin anew in
another partition, beside their sequences in the old one. Rules may change during a deployment's life; an audit needs to
know that others held before.
"""

from __future__ import annotations

import msgspec

from wire.config import ActionConfig, SequenceConfig
from wire.errors import CodecError
from wire.json_value import decode_json

SHAPE = "shape"
"""The header's name."""
PARTITIONS = "kafka.partitions"
_KEPT = {
    "sequence.segment_len": "sequence.segment_len",
    "sequence.num_slots": "sequence.max_context (in segments)",
    PARTITIONS: f"{PARTITIONS} (which only headrace repartition changes)",
}
"""What to call the rules that readers of examples must share with their writer: how much is kept of a user, where."""


class Shape(msgspec.Struct, frozen=True):
    """Kinds by bit, features by column; ``rules`` by their keys in the configuration."""

    kinds: tuple[str, ...]
    features: tuple[str, ...]
    user_features: tuple[str, ...]
    rules: dict[str, float] = {}
    extra_columns: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[int, int]:
        """How many columns each interaction has (`ActionConfig.num_columns`), and each user."""
        num_of_users = len(self.user_features)
        num_beside = {"propensity": 1, "user_features": num_of_users}
        return len(self.features) + sum(num_beside[each] for each in self.extra_columns), num_of_users

    def changed(self, now: Shape) -> dict[str, tuple[float, float]]:
        """Rules that have changed: what they were, what they are."""
        return {
            key: (was, now.rules[key]) for key, was in self.rules.items() if key in now.rules and now.rules[key] != was
        }


def shape_of(action: ActionConfig, sequence: SequenceConfig, num_partitions: int = 0) -> Shape:
    """The shape that a worker with this configuration states. ``num_partitions``: of the deployment; 0: not stated."""
    rules: dict[str, float] = {
        "action.max_future_s": action.max_future_s,
        "action.min_timestamp_ms": action.min_timestamp_ms,
        "action.max_record_bytes": action.max_record_bytes,
        "action.max_actions_per_record": action.max_actions_per_record,
        "sequence.join_window_s": sequence.join_window_s,
        "sequence.deduplicate": int(sequence.deduplicate),
        "sequence.segment_len": sequence.segment_len,
        "sequence.num_slots": sequence.num_slots,
    }
    if num_partitions:
        rules[PARTITIONS] = num_partitions
    return Shape(action.kinds, action.features, action.user_features, rules, action.extra_columns)


_decoder = msgspec.json.Decoder(Shape)


def encode_shape(shape: Shape) -> bytes:
    """The header's value."""
    return msgspec.json.encode(shape)


def decode_shape(said: bytes | None) -> Shape | None:
    """The shape in a header; None if there is none that can be read."""
    try:
        return decode_json(said, _decoder)
    except CodecError:
        return None


def disagreement(said: bytes | None, ours: Shape) -> str:
    """How what a worker ``said`` contradicts ``ours``; empty if it does not, or cannot be read. Either may have
    appended kinds."""
    theirs = decode_shape(said)
    if theirs is None:
        return ""
    num = min(len(theirs.kinds), len(ours.kinds))
    if theirs.kinds[:num] != ours.kinds[:num]:
        return f"action.kinds: expected {ours.kinds}, got examples of a worker with {theirs.kinds}"
    for name in ("features", "user_features"):
        expected, got = getattr(ours, name), getattr(theirs, name)
        if expected != got:
            return f"action.{name}: expected {expected}, got examples of a worker with {got}"
    if theirs.extra_columns != ours.extra_columns:
        return (
            f"action.user_tokens, action.propensity: expected columns {ours.extra_columns} beside the items' features, "
            f"got examples of a worker with {theirs.extra_columns}"
        )
    for key, (was, now) in theirs.changed(ours).items():
        if key in _KEPT:
            return f"{_KEPT[key]}: expected {now:g}, got examples of a worker with {was:g}"
    return ""
