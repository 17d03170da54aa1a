"""Parts of users' histories, one after the other, as the columns of a batch, and sums over them, in C++.

The definition is `wire.history`: `History.window` of each user, concatenated, field by field.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.compiled import baseline

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Of n rows of B users. ``feature_nC`` (n, C): all features; ``owner_n``: the rows' users, from 0;
    ``num_absent``: how many rows have no item."""

    item_n: Int64
    time_ms_n: Int64
    domain_n: Int64
    bits_n: NDArray[np.uint32]
    value_n: NDArray[np.float32]
    feature_nC: Int64
    owner_n: Int64
    num_absent: int


def join_windows(address_B: Int64, num_B: Int64, num_features: int) -> Columns:
    """The ``num_B`` rows (`wire.example.row_type`) from each address on, which the caller keeps alive.

    Raises `KernelUnavailable` without compiled kernels.
    """
    num, windows_B2 = int(num_B.sum()), np.stack([address_B, num_B], axis=1)
    item_n, time_ms_n, domain_n, owner_n = (np.empty(num, np.int64) for _ in range(4))
    bits_n, value_n = np.empty(num, np.uint32), np.empty(num, np.float32)
    feature_nC = np.empty((num, num_features), np.int64)
    join = baseline("headrace_join_windows")
    join.restype = ctypes.c_int64
    num_absent = join(
        ctypes.c_void_p(windows_B2.ctypes.data), ctypes.c_int64(len(num_B)), ctypes.c_int64(num_features),
        *(
            ctypes.c_void_p(each.ctypes.data)
            for each in (item_n, time_ms_n, domain_n, bits_n, value_n, feature_nC, owner_n)
        ),
    )  # fmt: skip
    return Columns(item_n, time_ms_n, domain_n, bits_n, value_n, feature_nC, owner_n, num_absent)


def count_kinds(bits_n: NDArray[np.uint32], first_R: Int64, target_R: Int64, num_kinds: int) -> NDArray[np.float64]:
    """(R, K) how many of the interactions ``first_R[r]:target_R[r]`` have each kind.

    Raises `KernelUnavailable` without compiled kernels.
    """
    done_RK = np.empty((len(target_R), num_kinds))
    baseline("headrace_count_kinds")(
        *(ctypes.c_void_p(each.ctypes.data) for each in (bits_n, first_R, target_R)),
        ctypes.c_int64(len(target_R)), ctypes.c_int64(num_kinds), ctypes.c_void_p(done_RK.ctypes.data),
    )  # fmt: skip
    return done_RK
