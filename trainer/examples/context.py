"""How much context a step computes: what comes before each user's first target is cut and, if long, thinned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kernels import stochastic_length
from kernels.length import kept_length
from kernels.windows import take_ranges
from trainer.examples.batch import COLUMNS, JaggedBatch, previous, take_interactions


def shorten(batch: JaggedBatch, max_context: int) -> JaggedBatch:
    """The batch with at most ``max_context`` interactions before each user's first target."""
    start_B = batch.starts_B1[:-1]
    first_B = np.maximum(start_B, batch.target_R[np.searchsorted(batch.target_R, start_B)] - max_context)
    length_B = batch.starts_B1[1:] - first_B
    starts_B1 = np.zeros_like(batch.starts_B1)
    np.cumsum(length_B, out=starts_B1[1:])
    if starts_B1[-1] == len(batch.item_n):
        return batch
    columns = take_ranges([getattr(batch, name) for name in COLUMNS], first_B, length_B)
    target_R = batch.target_R - (first_B - starts_B1[:-1])[batch.owner_R]
    previous_R = previous(target_R, starts_B1[batch.owner_R])
    given: dict[str, Any] = dict(zip(COLUMNS, columns, strict=True))
    return replace(batch, starts_B1=starts_B1, target_R=target_R, previous_R=previous_R, **given)


def thin(batch: JaggedBatch, max_context: int, alpha: float, backend: str) -> JaggedBatch:
    """Stochastic length: contexts that are long for 2 ``max_context`` tokens and ``alpha`` are thinned; what comes from
    a user's first target on stays."""
    first_target_B = batch.target_R[np.searchsorted(batch.target_R, batch.starts_B1[:-1])]
    kept_T, _ = stochastic_length(
        torch.from_numpy(2 * batch.starts_B1),
        torch.from_numpy(batch.seed_B),
        max_kept=kept_length(2 * max_context, alpha),
        must_keep_last_B=torch.from_numpy(2 * (batch.starts_B1[1:] - first_target_B)),
        backend=backend,
    )
    return take_interactions(batch, kept_T.numpy()[::2] // 2)


def can_thin(num_trained: int, max_context: int, alpha: float) -> bool:
    """Whether `thin` makes any context of up to ``num_trained`` interactions shorter before its user's first target;
    where a step has many targets of one user, it does so earlier."""
    return alpha > 0 and kept_length(2 * max_context, alpha) < 2 * num_trained
