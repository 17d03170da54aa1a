"""Parts of users' histories, one after the other, as the columns of a batch, and sums over them, in C++.

The definition is `wire.history`: `History.window` of each user, concatenated, field by field. That of `list_rows` is
``defined`` in ``tests/model/test_memory_events.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Structure, byref, c_int64, c_uint32, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.beside import Beside
from kernels.compiled import baseline, pointer, pointers
from kernels.id_map import IdMap

Int64 = NDArray[np.int64]
_BLOCK = 64  # as csrc/windows.cpp has it


class _ListCall(Structure):
    """``ListedRows`` of csrc/windows.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("map", "item", "row", "bits", "time")),
        ("num", c_int64),
        *((name, c_uint32) for name in ("positive", "negative")),
        *((name, c_void_p) for name in ("first", "target")),
        ("num_targets", c_int64),
        *((name, c_void_p) for name in ("chosen", "chosen_time", "known", "other", "before", "bounds", "lengths")),
    )


@dataclass(slots=True, eq=False)  # frozen would take several us more to make
class Columns:
    """Of n rows of B users. ``feature_nC`` (n, C): all features; ``num_absent``: how many rows have no item."""

    item_n: Int64
    time_ms_n: Int64
    domain_n: Int64
    bits_n: NDArray[np.uint32]
    value_n: NDArray[np.float32]
    feature_nC: Int64
    num_absent: int


def join_windows(address_B: Int64, num_B: Int64, num_features: int) -> Columns:
    """The ``num_B`` rows (`wire.example.row_type`) from each address on, which the caller keeps alive.

    Raises `KernelUnavailable` without compiled kernels.
    """
    num = int(num_B.sum())
    item_n, time_ms_n, domain_n = (np.empty(num, np.int64) for _ in range(3))
    bits_n, value_n = np.empty(num, np.uint32), np.empty(num, np.float32)
    feature_nC = np.empty((num, num_features), np.int64)
    join = baseline("headrace_join_windows", *[c_void_p] * 2, *[c_int64] * 2, *[c_void_p] * 6, result=c_int64)
    num_absent = join(
        *pointers(address_B, num_B), len(num_B), num_features,
        *pointers(item_n, time_ms_n, domain_n, bits_n, value_n, feature_nC),
    )  # fmt: skip
    return Columns(item_n, time_ms_n, domain_n, bits_n, value_n, feature_nC, num_absent)


def take_ranges(columns: Sequence[NDArray[Any]], begin_B: Int64, length_B: Int64) -> list[NDArray[Any]]:
    """Of each column the rows ``begin_B[b]:begin_B[b] + length_B[b]``, range after range; of one that repeats one value
    (its stride is 0), as many.

    Raises `KernelUnavailable` without compiled kernels.
    """
    num = int(length_B.sum())
    taken = [np.empty((num, *each.shape[1:]), each.dtype) if each.strides[0] else each[:num] for each in columns]
    copied = [(each, new) for each, new in zip(columns, taken, strict=True) if each.strides[0]]
    given, made = [each for each, _ in copied], [new for _, new in copied]
    sizes, addresses = c_int64 * len(given), c_void_p * len(given)
    take = baseline("headrace_take_ranges", *[c_void_p] * 2, *[c_int64] * 2, *[c_void_p] * 3, result=None)
    take(
        *pointers(begin_B, length_B), len(begin_B), len(given), sizes(*[each[:1].nbytes for each in given]),
        addresses(*pointers(*given)), addresses(*pointers(*made)),
    )  # fmt: skip
    return taken


def unpack_kinds(bits_n: NDArray[np.uint32], num_kinds: int) -> NDArray[np.float32]:
    """(n,) bit sets → (n, K) of 0 and 1.

    Raises `KernelUnavailable` without compiled kernels.
    """
    bits_n, kinds_nK = np.ascontiguousarray(bits_n, np.uint32), np.empty((len(bits_n), num_kinds), np.float32)
    unpack = baseline("headrace_unpack_kinds", c_void_p, *[c_int64] * 2, c_void_p, result=None)
    unpack(pointer(bits_n), len(bits_n), num_kinds, pointer(kinds_nK))
    return kinds_nK


def count_kinds(bits_n: NDArray[np.uint32], first_R: Int64, target_R: Int64, num_kinds: int) -> NDArray[np.float64]:
    """(R, K) how many of the interactions ``first_R[r]:target_R[r]`` have each kind.

    Raises `KernelUnavailable` without compiled kernels.
    """
    done_RK = np.empty((len(target_R), num_kinds))
    count = baseline("headrace_count_kinds", *[c_void_p] * 3, c_int64, c_int64, c_void_p)
    count(*pointers(bits_n, first_R, target_R), len(target_R), num_kinds, pointer(done_RK))
    return done_RK


@dataclass(slots=True, eq=False)  # frozen would take several us more to make
class RowLists:
    """Rows above 0 of users' interactions in three lists: of choices, with their times, of all, and of the others.
    ``bounds_6R``: where each list begins and ends for each target, list by list."""

    chosen: NDArray[np.int32]
    chosen_ms: Int64
    known: NDArray[np.int32]
    other: NDArray[np.int32]
    bounds_6R: Int64


def list_rows(
    rows_n: Int64, bits_n: NDArray[np.uint32], time_ms_n: Int64, kinds: tuple[int, int], first_R: Int64, target_R: Int64
) -> RowLists:
    """The lists for the interactions ``first_R[r]:target_R[r]`` of each target. ``kinds``: the bits of positive and of
    negative kinds, of which a choice has one, and none.

    Raises `KernelUnavailable` without compiled kernels.
    """
    call, lists, _held = _listing(None, rows_n, rows_n, bits_n, time_ms_n, kinds, first_R, target_R)
    baseline("headrace_list_rows", c_void_p)(byref(call))
    return lists()


def list_rows_beside(
    beside: Beside, of: IdMap, item_n: Int64, bits_n: NDArray[np.uint32], time_ms_n: Int64, kinds: tuple[int, int],
    first_R: Int64, target_R: Int64,
) -> Callable[[], tuple[Int64, RowLists]]:  # fmt: skip
    """Look the items up and list their rows, numbered from 1, on the thread ``beside``; returns what waits for both.
    Until then ``of``, which must be in C++, may not change.

    Raises `KernelUnavailable` without compiled kernels.
    """
    rows_n = np.empty_like(item_n)
    call, lists, held = _listing(of.address, item_n, rows_n, bits_n, time_ms_n, kinds, first_R, target_R)
    beside.start(baseline("headrace_list_rows", c_void_p), call, [*held, of])

    def waited() -> tuple[Int64, RowLists]:
        beside.wait()
        return rows_n, lists()

    return waited


def _listing(
    address: int | None, item_n: Int64, rows_n: Int64, bits_n: NDArray[np.uint32], time_ms_n: Int64,
    kinds: tuple[int, int], first_R: Int64, target_R: Int64,
) -> tuple[_ListCall, Callable[[], RowLists], list[NDArray[Any]]]:  # fmt: skip
    """The argument of ``headrace_list_rows``, what makes lists of what it has written, and all arrays whose addresses
    it has. ``address``: of the map in which the items are looked up; None if the rows are known."""
    num, rows_3n, chosen_ms = len(rows_n), np.empty((3, len(rows_n)), np.int32), np.empty(len(rows_n), np.int64)
    before, bounds_6R = np.empty((num // _BLOCK + 1, 4), np.int64), np.empty((6, len(target_R)), np.int64)
    chosen, known, other = rows_3n
    lengths, columns = np.empty(2, np.int64), (item_n, rows_n, bits_n, time_ms_n, first_R, target_R)
    given: list[NDArray[Any]] = [np.ascontiguousarray(each) for each in columns]
    assert "".join([each.dtype.char for each in given]) == "llIlll", [each.dtype for each in given]
    made: list[NDArray[Any]] = [chosen, chosen_ms, known, other, before, bounds_6R, lengths]
    call = _ListCall(
        address, *pointers(*given[:4]), num, *kinds, *pointers(*given[4:]), len(target_R), *pointers(*made)
    )  # fmt: skip

    def lists() -> RowLists:
        num_chosen, num_known = lengths.tolist()
        return RowLists(
            chosen[:num_chosen], chosen_ms[:num_chosen], known[:num_known], other[: num_known - num_chosen], bounds_6R
        )

    return call, lists, [*given, *made]
