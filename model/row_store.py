"""The weights of a table's rows with their row-wise Adagrad state: all rows, or one process's share of them.

Weights of 16 bits are rounded stochastically when they learn, with random bits that seed, step, row and column decide
(`kernels.Dither`), and to nearest when they are written. Whoever reads them gets float32, or hands them to a kernel
that takes them as they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import Dither, rowwise_adagrad_
from kernels.row_types import Rows
from kernels.transfer import to_device
from model.growing import GrowingRows
from model.share import WHOLE, Share

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
PRECISIONS = {
    "float32": (torch.float32, np.float32),
    "bfloat16": (torch.bfloat16, np.uint16),
    "float16": (torch.float16, np.float16),
}
"""What weights may be stored as: torch's type, and NumPy's, which has bfloat16 as its bits alone."""
BLOCK_ROWS = 1 << 16
"""How many rows are converted at a time."""


class RowStore:
    """``weight`` (capacity, D) in one of `PRECISIONS`, and ``state`` (capacity,) float32, by the rows' places in
    ``share``. ``seeds``: what tells the random bits of this table's rounding from those of others."""

    def __init__(
        self, width: int, device: torch.device | str, backend: str, precision: str = "float32",
        seeds: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        self.share = WHOLE
        self._dtype, self._array_type = PRECISIONS[precision]
        self._seeds = seeds
        self.weight = torch.zeros((0, width), dtype=self._dtype, device=device)
        self.state = torch.zeros(0, device=device)
        self._width, self._backend, self._memory = width, backend, dict[str, GrowingRows]()
        if self.weight.device.type == "cpu":
            self._reserve()

    def _reserve(self) -> None:
        rows = GrowingRows((self._width,), self._array_type)
        self._memory = {"weight": rows, "state": GrowingRows((), np.float32)}
        self._renew_views()

    def _renew_views(self) -> None:
        num = min(len(rows.array) for rows in self._memory.values())
        weight_VD, state_V = (torch.from_numpy(self._memory[name].array[:num]) for name in ("weight", "state"))
        self.weight, self.state = weight_VD.view(self._dtype), state_V

    @property
    def is_exact(self) -> bool:
        """Whether weights are stored as float32."""
        return self._dtype == torch.float32

    @property
    def array(self) -> Rows:
        """``weight`` on the CPU as an array for kernels (`kernels.row_types`): a view of it, unless it is on a GPU."""
        return self.weight.cpu().view(torch.uint16 if self._dtype == torch.bfloat16 else self._dtype).numpy()

    def grow(self, num_rows: int) -> None:
        """Grow to this share of ``num_rows`` rows. On a GPU, where memory cannot grow in place, this copies."""
        num = -(-num_rows // self.share.size)
        if num <= self.state.shape[0]:  # len of a tensor takes longer
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
        self.weight[where] = weight_UD.to(self.weight.device, self._dtype)
        self.state[where] = 0.0 if state_U is None else state_U.to(self.state.device)

    def read(self, place_U: Int64) -> tuple[Float32, Float32]:
        """(U, D) and (U,): copies of the weights and states at ascending places."""
        if len(place_U) and place_U[-1] - place_U[0] == len(place_U) - 1:  # faster
            part = slice(int(place_U[0]), int(place_U[-1]) + 1)
            return _copied(self.weight[part]), _copied(self.state[part])
        where = self._where(place_U)
        weight_UD, state_U = self.weight.index_select(0, where), self.state.index_select(0, where)
        return weight_UD.float().cpu().numpy(), state_U.cpu().numpy()

    def gather(self, place_U: Int64) -> Tensor:
        """(U, D) float32: a copy of the weights at these places, on their device."""
        return self.weight.index_select(0, self._where(place_U)).float()

    def learn(self, place_U: Int64, grad_UD: Tensor, lr: float, step: int) -> None:
        """One row-wise Adagrad step at distinct places. ``step``: decides how weights of 16 bits are rounded."""
        where: Any = self._where(place_U)
        rowwise_adagrad_(
            self.weight, self.state, where, grad_UD, lr=lr, distinct=True, dither=self._dither(step),
            backend=self._backend,
        )  # fmt: skip

    def _dither(self, step: int) -> Dither | None:
        """What a step's rounding depends on: the same for a row wherever it is."""
        return None if self.is_exact else Dither.of((*self._seeds, step), self.share.size, self.share.rank)

    def is_finite(self, first: int, stop: int) -> bool:
        """Whether this share of the rows from ``first`` (a multiple of the share's size) up to ``stop`` is finite,
        judging by sums, in which any NaN shows."""
        start, end = first // self.share.size, len(range(self.share.rank, stop, self.share.size))
        blocks = (self.weight[at : min(end, at + BLOCK_ROWS)] for at in range(start, end, BLOCK_ROWS))
        weights = self.weight[start:end].sum() if self.is_exact else sum(float(block.float().sum()) for block in blocks)
        return math.isfinite(float(weights)) and math.isfinite(float(self.state[start:end].sum()))

    def _where(self, place_U: Int64) -> Tensor:
        return to_device(place_U, self.weight.device)


def _copied(values: Tensor) -> Float32:
    return np.asarray(values.to("cpu", torch.float32, copy=True).numpy())
