"""A step's inputs for a graph against NumPy, part by part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.step_inputs import Size, StepInputs

NUM_KINDS, NUM_PRIORS = 5, 2


def some_inputs(seed: int, *, weighted: bool) -> StepInputs:
    """Of users with one to three targets each, at any place of theirs, some of which are choices without a row."""
    rng = np.random.default_rng(seed)
    length_B = rng.integers(1, 9, rng.integers(1, 7))
    starts_B1 = np.append(0, np.cumsum(length_B))
    target_R = np.concatenate(
        [
            start + np.sort(rng.permutation(length)[: rng.integers(1, 4)])
            for start, length in zip(starts_B1[:-1], length_B, strict=True)
        ]
    )
    num, num_targets = int(starts_B1[-1]), len(target_R)
    is_first_R = np.isin(target_R, starts_B1)
    choice_S = np.flatnonzero(rng.random(num_targets) < 0.7)
    target_row_R = rng.integers(0, 4, num_targets)
    return StepInputs(
        row_n=rng.integers(0, 9, num), time_n=np.sort(rng.integers(0, 1 << 40, num)), starts_B1=starts_B1,
        target_R=target_R, previous_R=np.where(is_first_R, -1, target_R - 1), choice_S=choice_S,
        target_row_R=target_row_R, bits_n=rng.integers(0, 32, num).astype(np.uint32),
        learned_bits_R=rng.integers(0, 32, num_targets).astype(np.uint32), is_new_R=rng.random(num_targets) < 0.5,
        live_V=rng.random(13) < 0.7, value_n=rng.normal(size=num).astype(np.float32),
        prior_RPK=rng.normal(size=(num_targets, NUM_PRIORS, NUM_KINDS)).astype(np.float32),
        weight_S=rng.random(len(choice_S)).astype(np.float32) if weighted else None,
    )  # fmt: skip


def kinds_of(bits_n: NDArray[np.uint32]) -> NDArray[np.float32]:
    return (bits_n[:, None] >> np.arange(NUM_KINDS) & 1).astype(np.float32)


def packed(of: StepInputs, size: Size) -> tuple[list[NDArray[Any]], list[float], list[NDArray[Any]], list[float]]:
    """The parts of both arrays, and what each is padded with."""
    last_B, user_n = of.starts_B1[1:] - 1, np.repeat(np.arange(len(of.starts_B1) - 1), np.diff(of.starts_B1))
    asked_n = np.append(of.time_n[1:], 0)
    asked_n[last_B] = of.time_n[last_B]
    before_S, row_S = of.previous_R[of.choice_S], of.target_row_R[of.choice_S]
    nowhere = 2 * size.interactions
    first_B = [np.flatnonzero(user_n[of.target_R] == user)[0] for user in range(len(last_B))]
    read_B = np.where(of.previous_R[first_B] >= 0, 2 * of.previous_R[first_B] + 1, 2 * of.target_R[first_B])
    is_live_V, num = of.live_V & (np.arange(len(of.live_V)) > 0), len(of.target_R)
    weight_S = np.ones(len(row_S), np.float32) if of.weight_S is None else of.weight_S
    integers = [
        of.row_n, np.stack([of.time_n, asked_n], axis=1), np.repeat(of.time_n, 2), 2 * of.starts_B1, 2 * of.target_R,
        np.where(before_S >= 0, 2 * before_S + 1, nowhere), row_S,
    ]  # fmt: skip
    floats = [
        kinds_of(of.bits_n), of.value_n, of.prior_RPK, kinds_of(of.learned_bits_R), of.is_new_R,
        np.full(num, 1.0 / num), np.where(row_S > 0, weight_S, 0) / np.float32(max(1, (row_S > 0).sum())),
        np.arange(2 * len(of.row_n)) >= np.repeat(read_B[user_n], 2), is_live_V,
    ]  # fmt: skip
    last_ms = float(of.time_n[-1])
    return integers, [0, last_ms, last_ms, 2 * len(of.row_n), 0, nowhere, 0], floats, [0, np.nan, 0, 0, 1, 0, 0, 0, 0]


def padded(parts: list[NDArray[Any]], rests: list[float], lengths: list[int], dtype: type) -> NDArray[Any]:
    whole = [np.full(length, rest, dtype) for length, rest in zip(lengths, rests, strict=True)]
    for into, part in zip(whole, parts, strict=True):
        into[: part.size] = part.reshape(-1)
    return np.concatenate(whole)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("room", [0, 5])
@pytest.mark.parametrize("seed", range(8))
def test_a_step_is_written_as_its_definition_says(seed: int, room: int, weighted: bool) -> None:
    inputs = some_inputs(seed, weighted=weighted)
    most = max(len(inputs.starts_B1) - 1, len(inputs.target_R)) + room
    size = Size(len(inputs.row_n) + room, most, len(inputs.live_V) + room, NUM_KINDS, NUM_PRIORS)
    integers, integer_rests, floats, float_rests = packed(inputs, size)
    got = np.full(sum(size.integers) + 1, -7), np.full(sum(size.floats) + 1, -7, np.float32)
    inputs.write(size, got[0][:-1], got[1][:-1])
    np.testing.assert_array_equal(got[0][:-1], padded(integers, integer_rests, size.integers, np.int64))
    np.testing.assert_array_equal(got[1][:-1], padded(floats, float_rests, size.floats, np.float32))
    assert (got[0][-1], got[1][-1]) == (-7, -7), "written beyond the end"


def test_arrays_of_other_types_are_refused() -> None:
    inputs = some_inputs(0, weighted=False)
    inputs.bits_n = inputs.bits_n.astype(np.int64)
    with pytest.raises(AssertionError):
        inputs.write(Size(99, 99, 99, NUM_KINDS, NUM_PRIORS), np.zeros(9999, np.int64), np.zeros(9999, np.float32))
