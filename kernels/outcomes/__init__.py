"""What a trainer counts of its predictions and their outcomes, a step at a time, in C++.

`trainer.metrics` has what the sums mean. The definitions are those of ``tests/kernels/test_outcomes.py``.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_double, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.compiled import baseline, pointer, pointers

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class _KindCounts(Structure):
    """``KindCounts`` of csrc/outcomes.cpp."""

    _fields_ = (
        *((name, c_int64) for name in ("num_kinds", "num_bins", "most")),
        *((name, c_void_p) for name in ("entropy", "calibration", "bins", "model", "baseline", "done", "span")),
    )


@dataclass(slots=True, eq=False)
class KindCounts:
    """Sums over predictions of K kinds, and the newest predictions in a ring.

    ``entropy_K4``: interactions, those that have the kind, the losses of the model and of the baseline.
    ``calibration_K2``: what the model expected, and what came. ``bins_K2B``: predictions without and with the kind, by
    probability. ``model_PK``, ``baseline_PK``, ``done_PK``: the interaction with number n is in row n modulo P.
    ``span_3``: the next number, how many before it are in the ring, and how many outcomes came after theirs had left.
    """

    entropy_K4: Float64
    calibration_K2: Float64
    bins_K2B: Int64
    model_PK: Float32
    baseline_PK: Float32
    done_PK: Bools
    span_3: Int64

    @staticmethod
    def empty(num_kinds: int, num_bins: int, most: int) -> KindCounts:
        """Nothing counted; room for the newest ``most`` predictions."""
        model_PK, baseline_PK = (np.zeros((most, num_kinds), np.float32) for _ in range(2))
        return KindCounts(
            np.zeros((num_kinds, 4)), np.zeros((num_kinds, 2)), np.zeros((num_kinds, 2, num_bins), np.int64),
            model_PK, baseline_PK, np.zeros((most, num_kinds), np.bool_), np.zeros(3, np.int64),
        )  # fmt: skip


def score_kinds(
    counts: KindCounts, number_R: Int64, model_RK: Float64, baseline_RK: Float64, done_RK: Bools, is_new_R: Bools
) -> None:
    """Count new interactions with the kinds that they have, and then kinds that arrived for earlier ones, which change
    the sums to what they would be if the kinds had been there at once.

    ``number_R``: the interactions' numbers; new ones have the next numbers, in any order. Predictions of earlier ones
    are ignored. Raises ValueError for a new one that has no number, or is predicted with something else than a
    probability, and then counts nothing; `KernelUnavailable` without compiled kernels.
    """
    num_kinds, _, num_bins = counts.bins_K2B.shape
    given = [*map(np.ascontiguousarray, (number_R, model_RK, baseline_RK, done_RK, is_new_R))]
    assert [each.dtype.char for each in given] == ["l", "d", "d", "?", "?"], [each.dtype for each in given]
    held = pointers(
        counts.entropy_K4, counts.calibration_K2, counts.bins_K2B,
        counts.model_PK, counts.baseline_PK, counts.done_PK, counts.span_3,
    )  # fmt: skip
    call = _KindCounts(num_kinds, num_bins, len(counts.done_PK), *held)
    score = baseline("headrace_score_kinds", c_void_p, c_int64, *[c_void_p] * 5)
    if score(byref(call), len(number_R), *pointers(*given)):
        raise ValueError("model_RK: expected probabilities from 0 to 1 and numbers from 0 on for new interactions")


def score_ranks(sums_KX6: Float64, rank_KS: Int64, slice_XS: Bools, unranked: int) -> None:
    """Add the gains of S targets' ranks by K rankers to the sums of the slices that they are in: 1, HR@1, HR@10, HR@50,
    NDCG@10, reciprocal rank. 0 is a miss; ``unranked`` counts for nothing.

    Raises `KernelUnavailable` without compiled kernels.
    """
    rank_KS, slice_XS = np.ascontiguousarray(rank_KS), np.ascontiguousarray(slice_XS)
    assert (rank_KS.dtype.char, slice_XS.dtype.char) == ("l", "?"), (rank_KS.dtype, slice_XS.dtype)
    score = baseline("headrace_score_ranks", *[c_void_p] * 2, *[c_int64] * 4, c_void_p, result=None)
    score(*pointers(rank_KS, slice_XS), len(rank_KS), *slice_XS.shape, unranked, pointer(sums_KX6))


def smoothed_rates(count_VC: Float32, rows_R: Int64, overall_K: Float64, strength: float) -> Float64:
    """(R, K) the share of these rows' interactions that have each kind. ``count_VC``: a row's interactions, then those
    that have each of the K kinds, then anything. ``strength``: how many interactions at the rates ``overall_K`` are
    added to each row's.

    Raises `KernelUnavailable` without compiled kernels.
    """
    rate_RK, rows_R = np.empty((len(rows_R), len(overall_K))), np.ascontiguousarray(rows_R)
    assert (count_VC.dtype.char, rows_R.dtype.char, overall_K.dtype.char) == ("f", "l", "d")
    smooth = baseline(
        "headrace_smoothed_rates", c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_double, c_void_p,
        result=None,
    )  # fmt: skip
    smooth(
        pointer(count_VC), count_VC.shape[1], pointer(rows_R), len(rows_R), len(overall_K), pointer(overall_K),
        strength, pointer(rate_RK),
    )  # fmt: skip
    return rate_RK


def move_counts(with_BC: Int64, block_B: Int64, from_N: Int64, to_N: Int64) -> None:
    """Move rows from one count to another. ``with_BC`` (b, c): how many rows have the count 1 + C b + c, for all counts
    that occur; ``block_B``: the sums of its rows.

    Raises `KernelUnavailable` without compiled kernels.
    """
    from_N, to_N = np.ascontiguousarray(from_N), np.ascontiguousarray(to_N)
    assert (from_N.dtype.char, to_N.dtype.char) == ("l", "l"), (from_N.dtype, to_N.dtype)
    move = baseline("headrace_move_counts", *[c_void_p] * 2, *[c_int64] * 2, *[c_void_p] * 2, result=None)
    move(*pointers(from_N, to_N), len(from_N), with_BC.shape[1], *pointers(with_BC, block_B))


def count_met(
    count_V: Int64, rows_n: Int64, first_R: Int64, target_R: Int64, own_R: Int64, least_R: Int64, above_R: Int64
) -> Int64:
    """(2, R) of the distinct rows above 0 among ``rows_n[first_R[r]:target_R[r]]``, how many have a count of
    ``above_R[r]`` or more, and how many others than row ``own_R[r]`` have one of ``least_R[r]`` up to that.
    ``count_V``: the counts of all these rows.

    Raises `KernelUnavailable` without compiled kernels.
    """
    met_2R = np.empty((2, len(target_R)), np.int64)
    given = count_V, rows_n, first_R, target_R, own_R, least_R, above_R
    assert [each.dtype.char for each in given] == ["l"] * len(given), [each.dtype for each in given]
    count = baseline("headrace_count_met", *[c_void_p] * 7, c_int64, c_void_p)
    if count(*pointers(*map(np.ascontiguousarray, given)), len(target_R), pointer(met_2R)):
        raise MemoryError("metrics: no room for the rows that a user has met")
    return met_2R


def count_came(bits_R: NDArray[np.uint32], is_new_R: NDArray[np.uint8], num_kinds: int) -> Int64:
    """(2K,) how many events brought each of the K kinds: new interactions, then others.

    Raises `KernelUnavailable` without compiled kernels.
    """
    came_2K = np.empty(2 * num_kinds, np.int64)
    bits_R, is_new_R = np.ascontiguousarray(bits_R), np.ascontiguousarray(is_new_R)
    assert (bits_R.dtype.char, is_new_R.dtype.char) == ("I", "B"), (bits_R.dtype, is_new_R.dtype)
    count = baseline("headrace_count_came", *[c_void_p] * 2, *[c_int64] * 2, c_void_p, result=None)
    count(*pointers(bits_R, is_new_R), len(bits_R), num_kinds, pointer(came_2K))
    return came_2K
