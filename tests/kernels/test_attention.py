"""HSTU attention against its definition in float64: the output, every gradient, any level, any number of threads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import BucketCache, KernelUnavailable, TimeBuckets, hstu_attention
from kernels.attention import cpp
from tests.kernels.jagged import Batch, attend, errors, make_batch
from tests.kernels.yardstick import assert_same_bits, force, forward_limit, levels, relative_error

CASES: dict[str, dict[str, Any]] = {
    "one head, width 50": {"lengths": [5, 0, 1, 100, 164], "heads": 1, "qk": 50, "value": 50, "num_buckets": 64},
    "odd widths": {"lengths": [49, 48, 47, 97], "heads": 3, "qk": 33, "value": 7, "pos_heads": 3, "positions": 3},
    "bias per head, milliseconds": {"lengths": [130, 2], "time_heads": 2, "num_buckets": 129, "unit_ms": 1.0},
    "context and targets": {"lengths": [60, 7, 3, 1], "context": 3, "targets": 4},
    "targets that fill the user": {"lengths": [180, 60, 7, 1], "targets": 180},
    "context that fills the user": {"lengths": [60, 7, 3, 1], "context": 70},
    "only positions": {"lengths": [70, 0, 5], "time_heads": 0},
    "only times": {"lengths": [70, 0, 5], "pos_heads": 0},
    "no bias": {"lengths": [70, 0, 5], "pos_heads": 0, "time_heads": 0},
    "one bucket": {"lengths": [70, 5], "num_buckets": 1},
    "nobody": {"lengths": []},
    "only empty users": {"lengths": [0, 0]},
}


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def assert_right(batch: Batch, backend: str = "cpp") -> None:
    """Assert float32 precision; where SiLU's slope is near zero, at most twice the error of plain float32."""
    expected, results = attend(batch, torch.float64, "reference"), attend(batch, torch.float32, backend)
    for name, error in errors(results, expected).items():
        limit = forward_limit() if name == "out" else 1e-4
        scale = float(expected[name].norm())
        if error > limit and scale > 0.0:
            limit = 2 * errors(attend(batch, torch.float32, "reference"), expected)[name]
        assert error <= limit or scale == 0.0, f"{name}: {error}"
        if scale == 0.0:
            assert not bool(results[name].any()), name


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_the_definition(
    case: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    assert_right(make_batch(**CASES[case]))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 140),
    st.integers(1, 90),
    st.integers(0, 5),
    st.integers(0, 9),
    st.integers(0, 2**31),
)
def test_any_shape_is_right(
    lengths: list[int], heads: int, qk: int, value: int, positions: int, num_buckets: int, context: int, targets: int,
    seed: int,
) -> None:  # fmt: skip
    assert_right(
        make_batch(
            lengths, heads=heads, qk=qk, value=value, positions=positions, num_buckets=num_buckets, pos_heads=heads,
            context=context, targets=targets, unit_ms=1.0 if num_buckets <= 60 else 10.0, seed=seed,
        )
    )  # fmt: skip


@pytest.mark.parametrize("level", levels())
def test_a_long_user_is_right(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, level)
    assert_right(make_batch([4096 if level == levels()[-1] else 700, 3], heads=1, qk=8, value=8, positions=5000))


@pytest.mark.parametrize("level", levels())
def test_more_than_256_buckets_are_right(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, level)
    batch = make_batch([150, 20], time_heads=1, num_buckets=2)
    thresholds = torch.arange(0, 4 * 10**8, 10**6)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, len(thresholds) + 1, generator=generator, dtype=torch.float64)
    assert_right(replace(batch, buckets=TimeBuckets(thresholds), time=table))


@pytest.mark.parametrize(
    "kind", ["equal", "falling", "shuffled", "extreme", "largest", "query before key", "query wraps"]
)
def test_any_times_are_right(kind: str) -> None:
    batch = make_batch([90, 17, 1], num_buckets=60, unit_ms=1.0)
    times = batch.key_time
    generator = torch.Generator().manual_seed(1)
    shuffled = times[torch.randperm(len(times), generator=generator)]
    assert_right(
        {
            "equal": batch.with_times(torch.full_like(times, 7), torch.full_like(times, 7)),
            "falling": batch.with_times(times.flip(0), times.flip(0)),
            "shuffled": batch.with_times(shuffled, shuffled),
            "extreme": batch.with_times(times * 2**22, torch.where(times % 2 == 0, times, -times) * 2**21),
            "largest": batch.with_times(torch.full_like(times, 2**63 - 1), times),
            "query before key": batch.with_times(times - 10**9, times),
            # 64-bit differences wrap, as in the definition.
            "query wraps": batch.with_times(
                torch.full_like(times, 2**63 - 1), torch.full_like(times, -(2**63)) + times
            ),
        }[kind]
    )


def test_buckets_are_those_of_the_thresholds() -> None:
    buckets = TimeBuckets.logarithmic(65, unit_ms=1000.0)
    thresholds = buckets.thresholds_K1
    assert torch.equal(buckets.bucket(thresholds), torch.arange(1, 65))
    assert torch.equal(buckets.bucket(thresholds - 1), torch.arange(64))
    assert buckets.bucket(torch.tensor([-5, 0, 999, 1000])).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", ["one head, width 50", "context and targets", "odd widths"])
def test_bfloat16_is_at_most_twice_as_far_as_plain_pytorch(
    case: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    batch = make_batch(**CASES[case])
    batch = replace(batch, **{name: getattr(batch, name).bfloat16().double() for name in ("q", "k", "v", "grad")})
    exact = attend(batch, torch.float64, "reference")
    plain = errors(attend(batch, torch.bfloat16, "reference"), exact)
    fused = errors(attend(batch, torch.bfloat16, "cpp"), exact)
    for name, error in fused.items():
        assert error <= 2 * plain[name] + 1e-5, f"{name}: {error} against {plain[name]}"


def test_a_kernel_that_returns_zeros_would_fail() -> None:
    expected = attend(make_batch([40, 3]), torch.float64, "reference")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    assert all(error == 1.0 for error in errors(zeros, expected).values())
    # ... though at a usual norm_len an ordinary absolute tolerance would let it pass.
    small = attend(replace(make_batch([40, 3]), norm_len=1e7), torch.float64, "reference")["out"]
    assert torch.allclose(torch.zeros_like(small), small, atol=1e-4)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(
    dtype: torch.dtype, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    batch = make_batch([3, 80, 1, 0, 33, 50, 120, 7, 9], num_buckets=64, unit_ms=1.0)
    assert_same_bits(lambda: attend(batch, dtype, "cpp"), (1, 2, 5))


def test_every_element_of_an_output_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(**CASES["context and targets"])
    expected = attend(batch, torch.float32, "cpp")
    _poison_empty(monkeypatch)
    poisoned = attend(batch, torch.float32, "cpp")
    assert all(torch.equal(poisoned[name], expected[name]) for name in expected)


def _poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return (
            tensor.fill_(float("nan"))
            if tensor.is_floating_point()
            else tensor.fill_(-1 if tensor.is_signed() else 255)
        )

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))


def test_neighbours_in_memory_are_left_alone() -> None:
    batch = make_batch([40, 3], heads=2, qk=16, value=24)
    wide = torch.full((43, 2, 64), float("nan"))  # q, k and v are views: what is between them must not be read
    q, k, v = wide[:, :, 1:17], wide[:, :, 18:34], wide[:, :, 36:60]
    q.copy_(batch.q), k.copy_(batch.k), v.copy_(batch.v)
    out = hstu_attention(q, k, v, batch.offsets, norm_len=batch.norm_len)
    plain = hstu_attention(batch.q.float(), batch.k.float(), batch.v.float(), batch.offsets, norm_len=batch.norm_len)
    assert torch.equal(out, plain)


def test_layers_share_the_buckets_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, calls = make_batch([30, 4]), []
    make = cpp.make_buckets
    monkeypatch.setattr(cpp, "make_buckets", lambda *a, **k: calls.append(1) or make(*a, **k))
    cache = BucketCache()
    first = attend(batch, torch.float32, "cpp", bucket_cache=cache)
    second = attend(batch, torch.float32, "cpp", bucket_cache=cache)
    assert len(calls) == 1
    assert torch.equal(first["out"], second["out"])
    batch.key_time.add_(10**8)  # changed in place: the cache must notice
    attend(batch, torch.float32, "cpp", bucket_cache=cache)
    assert len(calls) == 2


def test_torch_accepts_the_operator() -> None:
    batch = make_batch([9, 2], heads=1, qk=4, value=4)
    assert batch.buckets is not None
    assert batch.pos is not None
    assert batch.time is not None
    table = cpp.make_buckets(batch.offsets, batch.buckets, batch.query_time, batch.key_time)
    tensors = [x.float().requires_grad_() for x in (batch.q, batch.k, batch.v)]
    biases = [x.float().requires_grad_() for x in (batch.pos, batch.time)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # opcheck warns about its own tensors
        torch.library.opcheck(
            cpp.attention_op, (*tensors, batch.offsets, 10.0, *biases, table, None, None, None, None, None, None)
        )


def test_doubling_norm_len_halves_the_output() -> None:
    batch = make_batch([30, 4])
    once = attend(batch, torch.float32, "cpp")["out"]
    twice = attend(replace(batch, norm_len=2 * batch.norm_len), torch.float32, "cpp")["out"]
    assert relative_error(twice * 2, once) < 1e-6


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "offsets that end early": ({"offsets_B1": torch.tensor([0, 3])}, "offsets_B1: expected offsets that start at 0"),
    "offsets of another dtype": ({"offsets_B1": torch.tensor([0.0, 6.0])}, "offsets_B1: expected a"),
    "another dtype": ({"k_THD": torch.zeros(6, 2, 4, dtype=torch.float64)}, "k: expected torch.float32"),
    "another width": ({"k_THD": torch.zeros(6, 2, 5)}, "q, k, v: expected"),
    "no norm": ({"norm_len": 0.0}, "norm_len: expected a positive"),
    "bias of other heads": ({"pos_bias_GP": torch.zeros(3, 4)}, "pos_bias_GP: expected"),
    "times without buckets": ({"time_bias_GK": torch.zeros(1, 4)}, "time_bias_GK: expected time_buckets"),
    "too many targets": ({"num_targets_B": torch.tensor([7])}, "num_targets_B: expected counts"),
    "an unknown backend": ({"backend": "fast"}, "backend: expected one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_what_was_expected(case: str) -> None:
    change, message = BAD[case]
    arguments: dict[str, Any] = {
        "q_THD": torch.zeros(6, 2, 4),
        "k_THD": torch.zeros(6, 2, 4),
        "v_THE": torch.zeros(6, 2, 4),
        "offsets_B1": torch.tensor([0, 6]),
        "norm_len": 10.0,
    }
    arguments |= change
    with pytest.raises(ValueError, match=message):
        hstu_attention(**arguments)


def test_float64_needs_the_reference() -> None:
    with pytest.raises(ValueError, match="use backend='reference'"):
        attend(make_batch([4]), torch.float64, "cpp")


def test_triton_on_the_cpu_is_refused() -> None:
    with pytest.raises((KernelUnavailable, ValueError)):
        attend(make_batch([4]), torch.float32, "triton")


def test_thresholds_that_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="sort them"):
        TimeBuckets(torch.tensor([5, 3]))
