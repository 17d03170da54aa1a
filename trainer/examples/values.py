"""Which values a step teaches: each when it comes or changes, not again with later kinds of its interaction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.examples.batch import JaggedBatch
from trainer.examples.pieces import key_of
from wire.example import Lesson
from wire.history import Histories

Known = dict[tuple[int, int], float]
"""By the user's key and the interaction's place."""


def known_values(examples: Sequence[Lesson], histories: Histories) -> Known:
    """The values, NaN for none, of the interactions that get later kinds from these examples, before the step."""
    known = Known()
    for each in examples:
        if not each.num_feedback or (history := histories.users.get(each.user)) is None:
            continue
        for place in (each.first_index + each.feedback_index).tolist():
            _, rows = history.window(place, place + 1)
            if len(rows) and rows["item"][0]:
                known.setdefault((key_of(each.user), place), rows["value"].item())
    return known


def values_taught(batch: JaggedBatch, known: Known) -> NDArray[np.int64]:
    """The targets whose value the batch teaches."""
    value_R, user_R = batch.value_n[batch.target_R], batch.user_key_B[batch.owner_R]
    interactions = zip(user_R.tolist(), batch.age_R.tolist(), strict=True)
    had_R = np.array([known.get(each, np.nan) for each in interactions], np.float32)
    return np.flatnonzero(np.isfinite(value_R) & (batch.is_new_R | (value_R != had_R)))
