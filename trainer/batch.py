"""A jagged batch: the examples of one step as columns, no padding, no loop over interactions.

Shapes: B examples, n interactions of all of them (context first, then new, per example), T = 2n tokens
(item, action, item, action, …), R new interactions (the targets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
from model.tokens import query_times, unpack_kinds
from wire.example import Example

Int64 = NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class JaggedBatch:
    """Columns of the interactions, and where the targets are.

    ``starts_B1`` (B+1,) int64: example b has interactions ``starts_B1[b]:starts_B1[b+1]``. ``target_R`` (R,) int64:
    index of each new interaction among the n. ``previous_R`` (R,) int64: index of the one before it in the same
    example, or -1 when there is none. ``age_R`` (R,) int64: how many interactions the user had before.
    ``query_time_n``: when the next item was asked for (the next interaction's time; for the last, its own).
    """

    starts_B1: Int64
    item_n: Int64
    bits_n: NDArray[np.uint32]
    time_ms_n: Int64
    domain_n: Int64
    value_n: NDArray[np.float32]
    feature_nF: Int64
    user_feature_BF: Int64
    owner_n: Int64
    target_R: Int64
    previous_R: Int64
    age_R: Int64
    query_time_n: Int64
    kinds_nK: NDArray[np.float32]

    @property
    def num_targets(self) -> int:
        """R."""
        return len(self.target_R)

    @property
    def num_tokens(self) -> int:
        """T."""
        return 2 * len(self.item_n)


def _column(examples: Sequence[Example], name: str, kept: Sequence[slice], dtype: type[Number]) -> NDArray[Number]:
    parts = [getattr(example.interactions, name)[part] for example, part in zip(examples, kept, strict=True)]
    return np.concatenate(parts, dtype=dtype)


def build_batch(examples: Sequence[Example], config: ModelConfig) -> JaggedBatch:
    """Examples → `JaggedBatch`, in the order given. Numpy only; the trainer moves it to the device."""
    totals = np.array([len(example.interactions) for example in examples], np.int64)
    num_new_B = np.array([example.num_new for example in examples], np.int64)
    length_B = np.minimum(totals, num_new_B + config.max_context)
    kept = [slice(total - length, total) for total, length in zip(totals.tolist(), length_B.tolist(), strict=True)]
    starts_B1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(length_B)])
    bits_n = _column(examples, "action_bits", kept, np.uint32)
    time_ms_n = _column(examples, "timestamp_ms", kept, np.int64)
    owner_n = np.repeat(np.arange(len(examples)), length_B)
    place_n = np.arange(len(owner_n)) - starts_B1[owner_n]
    target_R = np.flatnonzero(place_n >= (length_B - num_new_B)[owner_n])
    first_new_B = np.array([example.first_new_index for example in examples], np.int64)
    owner_R = owner_n[target_R]
    return JaggedBatch(
        starts_B1=starts_B1,
        item_n=_column(examples, "item_hash", kept, np.int64),
        bits_n=bits_n,
        time_ms_n=time_ms_n,
        domain_n=_column(examples, "domain_hash", kept, np.int64),
        value_n=_column(examples, "value", kept, np.float32),
        feature_nF=_column(examples, "feature_hash", kept, np.int64),
        user_feature_BF=np.stack([example.user_feature_hash for example in examples]).astype(np.int64),
        owner_n=owner_n,
        target_R=target_R,
        previous_R=np.where(place_n[target_R] > 0, target_R - 1, -1),
        age_R=first_new_B[owner_R] + place_n[target_R] - (length_B - num_new_B)[owner_R],
        query_time_n=query_times(time_ms_n, starts_B1),
        kinds_nK=unpack_kinds(bits_n, len(config.kinds)),
    )


def take_interactions(batch: JaggedBatch, kept: Int64) -> JaggedBatch:
    """The batch with only the interactions at ``kept`` (ascending, every target among them)."""
    new_index_n = np.full(len(batch.item_n), -1, np.int64)
    new_index_n[kept] = np.arange(len(kept))
    owner = batch.owner_n[kept]
    starts_B1 = np.searchsorted(owner, np.arange(len(batch.starts_B1)))
    target_R = new_index_n[batch.target_R]
    previous_R = np.where(target_R > starts_B1[owner[target_R]], target_R - 1, -1)
    time_ms = batch.time_ms_n[kept]
    return JaggedBatch(
        starts_B1=starts_B1,
        item_n=batch.item_n[kept],
        bits_n=batch.bits_n[kept],
        time_ms_n=time_ms,
        domain_n=batch.domain_n[kept],
        value_n=batch.value_n[kept],
        feature_nF=batch.feature_nF[kept],
        user_feature_BF=batch.user_feature_BF,
        owner_n=owner,
        target_R=target_R,
        previous_R=previous_R,
        age_R=batch.age_R,
        query_time_n=query_times(time_ms, starts_B1),
        kinds_nK=batch.kinds_nK[kept],
    )
