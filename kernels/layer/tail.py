"""The last tokens of each user, the only ones whose outputs are needed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kernels.attention.buckets import BucketCache
from kernels.attention.check import check_counts
from kernels.transfer import to_device


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """The tokens after the first ``num_silent_B`` of each user: S of the batch's T. Make one per batch.

    ``offsets_B1``: the users' offsets among the S. ``rows_S``: which of the T they are, ascending.
    """

    num_silent_B: Tensor
    offsets_B1: Tensor
    rows_S: Tensor
    bucket_cache: BucketCache = field(default_factory=BucketCache, repr=False)

    @classmethod
    def behind(cls, num_silent_B: Tensor, offsets_B1: Tensor) -> Tail:
        """The tail of users with tokens at ``offsets_B1``; both arguments int64, on the CPU.

        Raises ValueError if a count is outside its user's number of tokens.
        """
        check_counts(num_silent_B, offsets_B1, "num_silent_B")
        silent, offsets = num_silent_B.numpy(), offsets_B1.numpy()
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(silent)])
        own = offsets - before
        rows = np.arange(own[-1]) + np.repeat(before[1:], own[1:] - own[:-1])
        return cls(num_silent_B, torch.from_numpy(own), torch.from_numpy(rows))

    @property
    def num_outputs(self) -> int:
        """S."""
        return len(self.rows_S)

    def of(self, y_TM: Tensor) -> Tensor:
        """(S, …) the tail's rows."""
        return y_TM.index_select(0, self._rows_on(y_TM.device))

    def alone_varies(self, y_TM: Tensor) -> Tensor:
        """(T, M) all rows, of which only the tail's take gradients."""
        rows_S = self._rows_on(y_TM.device)
        return y_TM.detach().index_copy(0, rows_S, y_TM.index_select(0, rows_S))

    def _rows_on(self, device: torch.device) -> Tensor:
        return to_device(self.rows_S.numpy(), device)
