"""A step's inputs as a CUDA graph reads them, padded, in one array of integers and one of floats, in C++.

The definition is ``packed`` in ``tests/kernels/test_step_inputs.py``.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.compiled import baseline, pointer, pointers

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Bits = NDArray[np.uint32]
Bools = NDArray[np.bool_]
_GIVEN = (
    "row_n", "time_n", "starts_B1", "target_R", "previous_R", "choice_S", "target_row_R", "bits_n", "learned_bits_R",
    "is_new_R", "live_V", "value_n", "prior_RPK",
)  # fmt: skip
_TYPES = "lllllllII??ff"


class _Call(Structure):
    """``StepInputs`` of csrc/step_inputs.cpp."""

    _fields_ = (
        *((name, c_int64) for name in ("num", "num_users", "num_targets", "num_choices", "num_kinds", "num_priors")),
        *((name, c_int64) for name in ("num_rows", "most", "most_users", "most_rows")),
        *((name, c_void_p) for name in (*_GIVEN, "weight_S", "integers", "floats")),
    )


@dataclass(frozen=True, slots=True)
class Size:
    """The padded numbers. ``users``: of users, targets and retrieval targets each; ``rows``: of the item table."""

    interactions: int
    users: int
    rows: int
    kinds: int
    priors: int

    @property
    def integers(self) -> list[int]:
        """Lengths of the parts of the integers: rows, query times and times of tokens, where users begin, tokens of the
        targets, tokens before the choices, rows that the choices learn."""
        tokens = 2 * self.interactions
        return [self.interactions, tokens, tokens, self.users + 1, self.users, self.users, self.users]

    @property
    def floats(self) -> list[int]:
        """Lengths of the parts of the floats: kinds, values, priors, kinds that targets bring, whether these are new,
        weights of the losses of targets and choices, which tokens are read, which rows compete."""
        each = [self.users] * 3
        return [
            self.interactions * self.kinds, self.interactions, self.users * self.priors * self.kinds,
            self.users * self.kinds, *each, 2 * self.interactions, self.rows,
        ]  # fmt: skip


@dataclass(slots=True, eq=False)  # frozen would take several us more to make
class StepInputs:
    """Of n interactions of B users, with R targets, S of which are retrieval targets (choices).

    ``row_n``: rows of the items as they were looked up; ``target_row_R``: of the targets' items, 0 if they have none:
    these are not learned. ``previous_R``: the interaction before each target, -1 if there is none. ``choice_S``: which
    targets are choices. ``live_V``: which of the table's rows have an item. ``weight_S``: of the choices' losses; None
    if all count alike. The others: as in `trainer.examples.batch.JaggedBatch`.
    """

    row_n: Int64
    time_n: Int64
    starts_B1: Int64
    target_R: Int64
    previous_R: Int64
    choice_S: Int64
    target_row_R: Int64
    bits_n: Bits
    learned_bits_R: Bits
    is_new_R: Bools
    live_V: Bools
    value_n: Float32
    prior_RPK: Float32
    weight_S: Float32 | None = None

    def write(self, size: Size, integers: Int64, floats: Float32) -> None:
        """Fill both arrays. Padding has no weight in any loss, and reads tokens that nobody has.

        Raises `KernelUnavailable` without compiled kernels.
        """
        given: list[NDArray[Any]] = [np.ascontiguousarray(getattr(self, name)) for name in _GIVEN]
        assert "".join([each.dtype.char for each in given]) == _TYPES, [each.dtype for each in given]
        weight = None if self.weight_S is None else pointer(self.weight_S)
        call = _Call(
            len(self.row_n), len(self.starts_B1) - 1, len(self.target_R), len(self.choice_S), size.kinds, size.priors,
            len(self.live_V), size.interactions, size.users, size.rows, *pointers(*given), weight,
            *pointers(integers, floats),
        )  # fmt: skip
        baseline("headrace_step_inputs", c_void_p, result=None)(byref(call))
