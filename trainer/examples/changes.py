"""Changes of users' features, merged into the batch as the network sees it (`model.tokens`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.tokens import changed
from trainer.examples.batch import JaggedBatch, take_interactions


def with_changes(batch: JaggedBatch) -> JaggedBatch:
    """The batch with a change inserted before each interaction that has one. Targets, and the interactions before them,
    stay the same."""
    num_n = 1 + changed(batch.state_nU, batch.starts_B1)
    own_n = np.cumsum(num_n) - 1  # where the interactions stand now
    is_own_m = np.zeros(num_n.sum(), np.bool_)
    is_own_m[own_n] = True
    wide = take_interactions(batch, np.repeat(np.arange(len(num_n)), num_n))

    def only(column_m: NDArray[Any], where_m: NDArray[np.bool_], other: float = 0) -> NDArray[Any]:
        where = where_m.reshape(-1, *(1,) * (column_m.ndim - 1))
        return np.where(where, column_m, np.array(other, column_m.dtype))

    return replace(
        wide,
        item_n=only(wide.item_n, is_own_m),
        bits_n=only(wide.bits_n, is_own_m),
        domain_n=only(wide.domain_n, is_own_m),
        value_n=only(wide.value_n, is_own_m, np.nan),
        feature_nF=only(wide.feature_nF, is_own_m),
        state_nU=only(wide.state_nU, ~is_own_m),
        target_R=own_n[batch.target_R],
        previous_R=np.where(batch.previous_R >= 0, own_n[batch.previous_R], -1),
    )
