"""The weights of a table's rows with their row-wise Adagrad state: all rows, or one process's share of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import rowwise_adagrad_
from kernels.transfer import to_device
from model.growing import GrowingRows
from model.share import WHOLE, Share

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


class RowStore:
    """``weight`` (capacity, D) and ``state`` (capacity,), by the rows' places in ``share``."""

    def __init__(self, width: int, device: torch.device | str, backend: str) -> None:
        self.share = WHOLE
        self.weight, self.state = torch.zeros((0, width), device=device), torch.zeros(0, device=device)
        self._width, self._backend, self._memory = width, backend, dict[str, GrowingRows]()
        if self.weight.device.type == "cpu":
            self._reserve()

    def _reserve(self) -> None:
        self._memory = {"weight": GrowingRows((self._width,), np.float32), "state": GrowingRows((), np.float32)}
        self._renew_views()

    def _renew_views(self) -> None:
        self.weight, self.state = (torch.from_numpy(self._memory[name].array) for name in ("weight", "state"))

    def grow(self, num_rows: int) -> None:
        """Grow to this share of ``num_rows`` rows. On a GPU, where memory cannot grow in place, this copies."""
        num = -(-num_rows // self.share.size)
        if num <= len(self.state):
            return
        if self._memory:
            for rows in self._memory.values():
                rows.grow(num)
            self._renew_views()
            return
        before, num = (self.weight, self.state), max(num, 3 * len(self.state) // 2)
        self.weight, self.state = self.weight.new_zeros((num, self._width)), self.state.new_zeros(num)
        for old, new in zip(before, (self.weight, self.state), strict=True):
            new[: len(old)] = old

    def hold(self, share: Share, weight_UD: Float32, state_U: Float32) -> None:
        """Hold another share of the rows, with these weights and states."""
        assert self.weight.device.type == "cpu", "a table on a GPU is not divided"
        self.share = share
        self._reserve()
        self.grow(len(state_U) * share.size)
        self.weight[: len(state_U)], self.state[: len(state_U)] = torch.from_numpy(weight_UD), torch.from_numpy(state_U)

    def put(self, rows_U: Int64, weight_UD: Tensor, state_U: Tensor | None) -> None:
        """Write those of these rows that are in the share. ``state_U``: None if they are new."""
        if self.share.size > 1:
            own = np.flatnonzero(self.share.is_own(rows_U))
            rows_U, at = self.share.places(rows_U[own]), torch.from_numpy(own)
            weight_UD, state_U = weight_UD[at], None if state_U is None else state_U[at]
        where = self._where(rows_U)
        self.weight[where] = weight_UD.to(self.weight.device)
        self.state[where] = 0.0 if state_U is None else state_U.to(self.state.device)

    def read(self, place_U: Int64) -> tuple[Float32, Float32]:
        """(U, D) and (U,): copies of the weights and states at ascending places."""
        if len(place_U) and place_U[-1] - place_U[0] == len(place_U) - 1:  # faster
            part = slice(int(place_U[0]), int(place_U[-1]) + 1)
            return self.weight[part].cpu().numpy().copy(), self.state[part].cpu().numpy().copy()
        where = self._where(place_U)
        return self.weight.index_select(0, where).cpu().numpy(), self.state.index_select(0, where).cpu().numpy()

    def gather(self, place_U: Int64) -> Tensor:
        """(U, D) a copy of the weights at these places, on their device."""
        return self.weight.index_select(0, self._where(place_U))

    def learn(self, place_U: Int64, grad_UD: Tensor, lr: float) -> None:
        """One row-wise Adagrad step at distinct places."""
        where: Any = self._where(place_U)
        rowwise_adagrad_(self.weight, self.state, where, grad_UD, lr=lr, distinct=True, backend=self._backend)

    def is_finite(self, num_rows: int) -> bool:
        """Whether this share of the first ``num_rows`` rows is finite, judging by sums, in which any NaN shows."""
        num = len(range(self.share.rank, num_rows, self.share.size))
        return all(math.isfinite(float(column[:num].sum())) for column in (self.weight, self.state))

    def _where(self, place_U: Int64) -> Tensor:
        return to_device(place_U, self.weight.device)
