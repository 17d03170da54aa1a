"""Users' histories in C++: folded from `kernels.examples.Block`s, without an object for each user.

The definition is `wire.history.Histories`, which folds single examples.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.examples import Block
from kernels.library import baseline, pointer

Rows = NDArray[np.void]
Int64 = NDArray[np.int64]


class UserHistories:
    """User → the last interactions; the users who have been quiet longest are forgotten first.

    ``row_type``: as `wire.example.row_type` makes it. ``max_context``: of each user, the segments that hold so many
    interactions are kept. One thread at a time; raises `KernelUnavailable` without compiled kernels.
    """

    def __init__(self, row_type: np.dtype[np.void], max_context: int) -> None:
        self.row_type = row_type
        make = baseline("headrace_histories_new")
        make.restype = ctypes.c_void_p
        made = make(ctypes.c_int64((row_type.itemsize - 32) // 8), ctypes.c_int64(max_context))
        if made is None:
            raise MemoryError
        self._at = ctypes.c_void_p(made)
        weakref.finalize(self, baseline("headrace_histories_free"), self._at)

    def __len__(self) -> int:
        return _call("headrace_histories_size", self._at)

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return _call("headrace_histories_bytes", self._at)

    def fold(self, block: Block, first: int, last: int, max_bytes: int) -> int:
        """Fold the records ``first`` to ``last - 1`` of a block, all of them `GOOD`; returns how many users were
        forgotten to stay within ``max_bytes``."""
        assert block.rows.dtype == self.row_type
        source = np.frombuffer(block.data, np.uint8)
        heads = block.heads[first:last]
        return _checked(_call(
            "headrace_histories_fold", self._at, _address(source), _address(heads), ctypes.c_int64(len(heads)),
            _address(block.rows), ctypes.c_int64(max_bytes),
        ))  # fmt: skip

    def put(self, user: str, segment_len: int, first: int, rows: Rows, user_features: Int64, max_bytes: int) -> int:
        """`fold` for the rows of one record, at the places from ``first`` on."""
        name, rows = user.encode(), np.ascontiguousarray(rows)
        features = np.ascontiguousarray(user_features)
        assert rows.dtype == self.row_type
        return _checked(_call(
            "headrace_histories_put", self._at, name, ctypes.c_int64(len(name)), ctypes.c_int64(segment_len),
            ctypes.c_int64(first), _address(rows), ctypes.c_int64(len(rows)), _address(features),
            ctypes.c_int64(len(features)), ctypes.c_int64(max_bytes),
        ))  # fmt: skip

    def get(self, user: str) -> tuple[Rows, Int64] | None:
        """Copies of a user's rows that have arrived, oldest first, and of the features; None if unknown."""
        name, nums = user.encode(), np.zeros(2, np.int64)
        who = (self._at, name, ctypes.c_int64(len(name)))
        if not _call("headrace_histories_find", *who, _address(nums)):
            return None
        rows, features = np.empty(nums[0], self.row_type), np.empty(nums[1], np.int64)
        num = _call("headrace_histories_read", *who, _address(rows), _address(features))
        return rows[:num], features

    def drop(self, user: str) -> bool:
        """Forget a user; False if unknown."""
        name = user.encode()
        return bool(_call("headrace_histories_drop", self._at, name, ctypes.c_int64(len(name))))

    def newest(self, num: int) -> list[str]:
        """The users who acted most recently, newest first."""
        ends = np.zeros(max(0, min(num, len(self))), np.int64)
        names, wanted = np.empty(0, np.uint8), (self._at, ctypes.c_int64(len(ends)), _address(ends))
        _call("headrace_histories_newest", *wanted, _address(names), ctypes.c_int64(0))
        names = np.empty(int(ends.max(initial=0)), np.uint8)
        _call("headrace_histories_newest", *wanted, _address(names), ctypes.c_int64(len(names)))
        text, starts = names.tobytes(), [0, *ends.tolist()]
        return [text[start:end].decode() for start, end in itertools.pairwise(starts)]


def _call(name: str, *arguments: Any) -> int:
    function = baseline(name)
    function.restype = ctypes.c_int64
    return int(function(*arguments))


def _checked(answer: int) -> int:
    if answer < 0:
        raise MemoryError
    return answer


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(pointer(array))
