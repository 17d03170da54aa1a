"""What the bits and columns of examples mean, stated by their worker in a header of its fence.

Bits stand for kinds, and columns for features, by number: a reader with a different configuration would take a click
for a like, and nothing in an example would show it.
"""

from __future__ import annotations

import msgspec

from wire.config import ActionConfig

SHAPE = "shape"
"""The header's name."""


class Shape(msgspec.Struct, frozen=True):
    """Kinds by bit, features by column."""

    kinds: tuple[str, ...]
    features: tuple[str, ...]
    user_features: tuple[str, ...]


def encode_shape(action: ActionConfig) -> bytes:
    """The header's value."""
    return msgspec.json.encode(Shape(action.kinds, action.features, action.user_features))


def disagreement(said: bytes | None, action: ActionConfig) -> str:
    """How what a worker ``said`` contradicts ``action``; empty if it does not, or cannot be read. Either may have
    appended kinds."""
    try:
        theirs = msgspec.json.decode(said or b"", type=Shape)
    except msgspec.DecodeError:
        return ""
    num = min(len(theirs.kinds), len(action.kinds))
    if theirs.kinds[:num] != action.kinds[:num]:
        return f"action.kinds: expected {action.kinds}, got examples of a worker with {theirs.kinds}"
    for name in ("features", "user_features"):
        ours, got = getattr(action, name), getattr(theirs, name)
        if ours != got:
            return f"action.{name}: expected {ours}, got examples of a worker with {got}"
    return ""
