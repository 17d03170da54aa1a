"""Stochastic length: which tokens are kept, and that every backend keeps the same ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import kept_length, stochastic_length
from kernels.length.reference import exponential, random_bits, sampling_key

BACKENDS = ("cpp", "reference")
GOLDEN_RECENCY = [3, 12, 25, 38, 39, 66, 75, 76, 77, 78]
GOLDEN_UNIFORM = [14, 16, 20, 24, 29, 43, 45, 52, 62, 72]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@given(data=st.data(), unit=st.integers(1, 3), mode=st.sampled_from(["recency", "uniform"]), whole=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_compiled_choice_is_the_references(data: st.DataObject, unit: int, mode: str, whole: bool) -> None:
    users = data.draw(
        st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9), st.integers(-(2**63), 2**63 - 1)), max_size=8)
    )
    last_B = torch.tensor([last for _, last, _ in users], dtype=torch.int64)
    offsets_B1 = offsets_of([units * unit + last for units, last, _ in users])
    seeds_B = torch.tensor([seed for *_, seed in users], dtype=torch.int64)
    options = {"max_kept": unit * data.draw(st.integers(1, 30)), "mode": mode, "unit": unit}
    fast, slow = (
        stochastic_length(
            offsets_B1, seeds_B, must_keep_last_B=last_B, sometimes_whole=whole, backend=backend, **options
        )
        for backend in BACKENDS
    )
    assert torch.equal(fast[0], slow[0])
    assert torch.equal(fast[1], slow[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_contexts_stay_and_long_ones_keep_whole_units_in_order(backend: str) -> None:
    lengths = [0, 6, 40, 8, 100]
    offsets_B1 = offsets_of(lengths)
    last_B = torch.tensor([0, 2, 4, 0, 10])
    kept_T, new_offsets_B1 = stochastic_length(
        offsets_B1, torch.arange(5), max_kept=8, must_keep_last_B=last_B, backend=backend
    )
    assert new_offsets_B1.diff().tolist() == [0, 6, 12, 8, 18]
    assert bool((kept_T.diff() > 0).all())
    for b, (length, last) in enumerate(zip(lengths, last_B.tolist(), strict=True)):
        tokens = kept_T[new_offsets_B1[b] : new_offsets_B1[b + 1]] - offsets_B1[b]
        assert tokens[len(tokens) - last :].tolist() == list(range(length - last, length))
        context = tokens[: len(tokens) - last].view(-1, 2)
        assert bool((context[:, 0] % 2 == 0).all())
        assert bool((context[:, 1] == context[:, 0] + 1).all())


def test_the_choice_depends_on_nothing_but_the_user() -> None:
    alone, _ = stochastic_length(offsets_of([50]), torch.tensor([7]), max_kept=10)
    together, offsets_B1 = stochastic_length(offsets_of([30, 50, 80]), torch.tensor([1, 7, 2]), max_kept=10)
    assert torch.equal(alone, together[offsets_B1[1] : offsets_B1[2]] - 30)
    other, _ = stochastic_length(offsets_of([50]), torch.tensor([8]), max_kept=10)
    assert not torch.equal(alone, other)


def test_the_choice_never_changes_from_release_to_release() -> None:
    # Replays of a log must thin contexts as the first run did, so these values are part of the format.
    kept_T, _ = stochastic_length(offsets_of([40, 40]), torch.tensor([1, -1]), max_kept=5, unit=1)
    uniform_T, _ = stochastic_length(offsets_of([40, 40]), torch.tensor([1, -1]), max_kept=5, unit=1, mode="uniform")
    assert kept_T.tolist() == GOLDEN_RECENCY
    assert uniform_T.tolist() == GOLDEN_UNIFORM


def frequencies(mode: str, num_units: int, max_kept: int, num_users: int = 20_000) -> Tensor:
    offsets_B1 = offsets_of([num_units] * num_users)
    seeds_B = torch.arange(num_users)
    kept_T, _ = stochastic_length(offsets_B1, seeds_B, max_kept=max_kept, unit=1, mode=mode)
    return torch.bincount(kept_T % num_units, minlength=num_units) / num_users


def test_uniform_keeps_every_unit_alike() -> None:
    torch.testing.assert_close(frequencies("uniform", 12, 3), torch.full((12,), 0.25), atol=0.015, rtol=0)


def test_recency_draws_the_first_unit_with_weight_one_over_age_plus_one() -> None:
    weight = 1.0 / torch.arange(12, 0, -1)
    torch.testing.assert_close(frequencies("recency", 12, 1), weight / weight.sum(), atol=0.015, rtol=0)
    assert bool((frequencies("recency", 40, 10).diff()[5:] > -0.02).all())


def test_a_long_context_stays_whole_with_the_papers_probability() -> None:
    num_users, num_units, max_kept = 20_000, 40, 20
    _, new_offsets_B1 = stochastic_length(
        offsets_of([num_units] * num_users), torch.arange(num_users), max_kept=max_kept, unit=1, sometimes_whole=True
    )
    share = (new_offsets_B1.diff() == num_units).double().mean()
    assert abs(float(share) - (max_kept / num_units) ** 2) < 0.015


def test_the_fixed_point_logarithm_is_within_two_to_the_minus_16() -> None:
    bits = random_bits(torch.arange(50_000), torch.tensor(3))
    uniform = (2.0 * ((bits >> 32) & 0xFFFFFFFF).double() + 1) / 2**33
    error = exponential(bits).double() / 2**16 + torch.log2(uniform)
    assert float(error.abs().max()) < 2**-15
    extremes = torch.tensor([0, -1, 1 << 32, (1 << 63) - 1, -(1 << 63)])
    assert bool((exponential(extremes) >= 1).all())
    assert bool((exponential(extremes) <= 33 << 16).all())


def test_keys_fit_63_bits_and_differ_at_the_longest_context() -> None:
    ages = torch.arange((1 << 20) - 5, 1 << 20)
    for recency in (True, False):
        key = sampling_key(torch.tensor(5), (1 << 20) - 1 - ages, ages, recency)
        assert bool((key >= 0).all())
        assert len(key.unique()) == len(ages)


def test_kept_length_is_a_power_of_the_length_in_whole_units() -> None:
    assert kept_length(4096, 2.0) == 4096
    assert kept_length(4096, 1.5) == int(math.pow(4096, 0.75)) // 2 * 2
    assert kept_length(3, 1.1, unit=4) == 4
    with pytest.raises(ValueError, match="alpha: expected above 1"):
        kept_length(4096, 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_users_give_no_tokens(backend: str) -> None:
    empty = torch.empty(0, dtype=torch.int64)
    kept_T, offsets_B1 = stochastic_length(torch.zeros(1, dtype=torch.int64), empty, max_kept=2, backend=backend)
    assert kept_T.tolist() == []
    assert offsets_B1.tolist() == [0]


def test_bad_arguments_say_what_was_expected() -> None:
    offsets_B1, seeds_B = offsets_of([4, 6]), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"max_kept: expected a multiple of unit \(2\)"):
        stochastic_length(offsets_B1, seeds_B, max_kept=3)
    with pytest.raises(ValueError, match="mode: expected one of recency, uniform"):
        stochastic_length(offsets_B1, seeds_B, max_kept=2, mode="newest")
    with pytest.raises(ValueError, match=r"seeds_B: expected \(2,\) int64"):
        stochastic_length(offsets_B1, seeds_B[:1], max_kept=2)
    with pytest.raises(ValueError, match="whole units of 2"):
        stochastic_length(offsets_of([3, 6]), seeds_B, max_kept=2)
    with pytest.raises(ValueError, match="must_keep_last_B: expected 0 to"):
        stochastic_length(offsets_B1, seeds_B, max_kept=2, must_keep_last_B=torch.tensor([6, 0]))
    with pytest.raises(ValueError, match="at most 1048576 units"):
        stochastic_length(offsets_of([4, 2 * 1048577]), seeds_B, max_kept=2)
