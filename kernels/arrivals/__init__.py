"""The newest interactions' keys in a ring, numbered as they come, in C++.

The definition is a dictionary of each key's last number: see ``tests/kernels/test_arrivals.py``.
"""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import numpy as np
from numpy.typing import NDArray

from kernels.compiled import baseline, pointer, pointers

Int64 = NDArray[np.int64]
_ARGUMENTS = (*[c_void_p] * 3, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_void_p)


class NumberedKeys:
    """The keys of the newest ``most`` interactions. ``key_P``: that of number n is at n modulo ``most``."""

    def __init__(self, most: int) -> None:
        self.key_P = np.zeros(most, np.int64)
        self._slot_S = np.zeros(1 << (2 * most - 1).bit_length(), np.uint64)

    @property
    def num_known(self) -> int:
        """How many distinct keys have numbers."""
        return int(np.count_nonzero(self._slot_S))

    def number(self, key_R: Int64, is_new_R: NDArray[np.bool_], order_R: Int64 | None, num: int) -> tuple[Int64, int]:
        """(R,) the last number of each earlier interaction's key, -1 if it is none of the newest, and the next numbers,
        from ``num`` on, of new ones in the order ``order_R`` (else in theirs); how many earlier ones were found.

        Raises `KernelUnavailable` without compiled kernels.
        """
        number_R, key_R, is_new_R = np.empty_like(key_R), np.ascontiguousarray(key_R), np.ascontiguousarray(is_new_R)
        assert (key_R.dtype.char, is_new_R.dtype.char) == ("l", "?"), (key_R.dtype, is_new_R.dtype)
        assign = baseline("headrace_number_arrivals", *_ARGUMENTS, result=c_int64)
        num_found = assign(
            *pointers(key_R, is_new_R), None if order_R is None else pointer(order_R), len(key_R), num,
            pointer(self.key_P), len(self.key_P), pointer(self._slot_S), len(self._slot_S), pointer(number_R),
        )  # fmt: skip
        return number_R, int(num_found)

    def clear(self) -> None:
        """Forget all keys."""
        self._slot_S[:] = 0

    def copy(self) -> NumberedKeys:
        """The same, sharing nothing."""
        other = NumberedKeys(len(self.key_P))
        other.key_P, other._slot_S = self.key_P.copy(), self._slot_S.copy()
        return other
