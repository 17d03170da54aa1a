"""Every Triton kernel on the GPU against the float64 reference: both dtypes, sizes too large for the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels import hstu_attention, rowwise_adagrad_, sampled_softmax
from kernels.attention import triton_launch
from tests.kernels.triton import cases

GPU = "cuda"


@pytest.fixture(autouse=True)
def float32_is_float32() -> None:
    """Undo what an earlier test's trainer may have set: TF32."""
    torch.set_float32_matmul_precision("highest")


DTYPES = [torch.float32, torch.bfloat16]
ATTENTION: dict[str, dict[str, Any]] = {
    "ragged users, odd widths": {"lengths": [5, 0, 133, 1, 70, 300], "qk": 50, "value": 40},
    "context and targets": {"lengths": [5, 0, 233, 64], "context": 20, "targets": 40, "groups": 1},
    "times that go back": {"lengths": [300, 90], "ordered": False, "qk": 64, "value": 64},
    "one long user": {"lengths": [1500, 3], "heads": 2, "qk": 128, "value": 128, "positions": 1000, "buckets": 54},
    "many positions, shared biases": {"lengths": [700, 65], "positions": 2000, "groups": 1, "qk": 64, "value": 64},
    "many buckets": {"lengths": [400], "heads": 1, "groups": 1, "buckets": 50, "qk": 32, "value": 32},
    "context longer than a tile": {"lengths": [3, 400], "context": 300, "targets": 30},
    "many thresholds among far keys": {"lengths": [1400, 30, 700], "heads": 2, "positions": 300, "buckets": 54},
    "context beyond the near table": {"lengths": [3, 1200], "context": 900, "targets": 30, "buckets": 40},
    "position only": {"lengths": [200, 30], "use_time": False},
    "time only": {"lengths": [200, 30], "use_position": False},
    "no bias": {"lengths": [200, 30], "use_position": False, "use_time": False},
    "times at the ends of 64 bits": {"lengths": [200, 20], "extreme": True},
    "one token a user": {"lengths": [1] * 300, "qk": 64, "value": 64},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_and_its_gradients_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    cases.check_attention(GPU, dtype, **ATTENTION[name])


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", [name for name in ATTENTION if "odd" not in name])
def test_attention_by_the_copy_engine_equals_the_reference(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which only large batches use."""
    monkeypatch.setattr(triton_launch, "MANY_TOKENS", 1)
    cases.check_attention(GPU, torch.bfloat16, **ATTENTION[name] | {"qk": width, "value": width})


def test_users_of_up_to_4096_tokens() -> None:
    cases.check_attention(
        GPU, torch.bfloat16, lengths=[4096, 1, 17], heads=1, groups=1, qk=64, value=64, positions=4096, buckets=40
    )


def test_attention_repeats_to_the_bit() -> None:
    arguments, grad = cases.attention_case([700, 30, 5], qk=64, value=64, positions=300)
    first = cases.run(hstu_attention, arguments, grad, GPU, torch.bfloat16, "triton")
    for _ in range(5):
        again = cases.run(hstu_attention, arguments, grad, GPU, torch.bfloat16, "triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_every_output_is_written() -> None:
    """The memory that outputs will be allocated from is filled with NaN first."""
    arguments, grad = cases.attention_case([700, 0, 30, 5], qk=64, value=64)
    poison = torch.full((64, 1 << 20), float("nan"), device=GPU)
    del poison
    result = cases.run(hstu_attention, arguments, grad, GPU, torch.bfloat16, "triton")
    assert all(bool(torch.isfinite(x).all()) for x in result)


def test_auto_chooses_triton_for_cuda_tensors() -> None:
    arguments, _ = cases.attention_case([50])
    triton = cases.run(hstu_attention, arguments, None, GPU, torch.float32, "triton")[0]
    assert torch.equal(cases.run(hstu_attention, arguments, None, GPU, torch.float32, "auto")[0], triton)


def test_offsets_beyond_32_bits_of_elements() -> None:
    """300,000 tokens × 64 heads × 128: 2.4 billion elements, so the last users' addresses need 64 bits."""
    heads, width, length = 64, 128, 300
    tokens = 300_000
    q = torch.randn(tokens, heads, width, device=GPU, dtype=torch.bfloat16)
    offsets = torch.arange(0, tokens + 1, length, device=GPU)
    out = hstu_attention(q, q, q, offsets, norm_len=100.0)
    last = hstu_attention(q[-length:], q[-length:], q[-length:], offsets[:2], norm_len=100.0)
    assert cases.error(out[-length:], last) < 1e-2  # different tiles, so different rounding


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {"lengths": [5, 0, 133, 70], "model": 64, "qk": 32, "value": 32},
        {"lengths": [300, 17], "model": 50, "qk": 25, "value": 25, "heads": 2, "dropout": 0.0, "bias": False},
        {"lengths": [200, 90], "model": 512, "qk": 64, "value": 64, "heads": 8},
    ],
    ids=["small", "odd widths", "wide"],
)
def test_a_layer_and_its_gradients_equal_the_reference(shape: dict[str, Any], dtype: torch.dtype) -> None:
    cases.check_layer(GPU, dtype, **shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {"new": [3, 0, 20, 1], "cached": [400, 5, 0, 700], "qk": 64, "value": 64},
        {"new": [350, 2], "cached": [1000, 3], "targets": 300, "groups": 1, "qk": 32, "value": 32},
        {"new": [2] * 40, "cached": [150] * 40, "qk": 128, "value": 128},
        {"new": [2], "cached": [50], "biases": False},
    ],
    ids=["ragged", "candidates", "many users", "no biases"],
)
def test_delta_attention_and_its_gradients_equal_the_reference(shape: dict[str, Any], dtype: torch.dtype) -> None:
    cases.check_delta(GPU, dtype, **shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("negatives", ["shared", "own", "batch"])
@pytest.mark.parametrize("log_q", [False, True])
def test_sampled_softmax_and_its_gradients_equal_the_reference(negatives: str, log_q: bool, dtype: torch.dtype) -> None:
    for width in (64, 100, 256):
        cases.check_sampled(
            GPU, dtype, negatives=negatives, log_q=log_q, normalize=not log_q, rows=333, table=700, num_negatives=200,
            width=width,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("valid", [False, True])
def test_full_softmax_and_its_gradients_equal_the_reference(valid: bool, dtype: torch.dtype) -> None:
    cases.check_full(GPU, dtype, valid=valid, rows=300, table=5000, width=64)


def test_sampled_softmax_never_holds_the_scores() -> None:
    def peak(num_negatives: int) -> int:
        query = torch.randn(4096, 128, device=GPU, dtype=torch.bfloat16, requires_grad=True)
        table = torch.randn(20_000, 128, device=GPU, dtype=torch.bfloat16)
        negatives = torch.randint(0, 20_000, (num_negatives,), device=GPU)
        target = torch.randint(0, 20_000, (4096,), device=GPU)
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        sampled_softmax(query, table, target, negatives).sum().backward()
        return torch.cuda.max_memory_allocated() - held

    assert peak(8192) < 4096 * 8192 * 4 / 2


@pytest.mark.parametrize("masked", [False, True])
def test_ranks_and_best_rows_equal_the_reference_with_many_ties(masked: bool) -> None:
    cases.check_best(GPU, masked=masked, rows=150, table=3000, width=64, k=50)
    cases.check_best(GPU, masked=masked, rows=3, table=20_000, width=48, k=200)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adagrad_adds_repeated_rows_and_skips_empty_ones(dtype: torch.dtype) -> None:
    for width in (12, 64, 128, 500):
        cases.check_adagrad(GPU, dtype, table=5000, width=width, count=20_000, repeats=700)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_adagrad_rounds_stochastically_as_the_reference_does(dtype: torch.dtype) -> None:
    for width in (12, 64, 500):
        cases.check_dithered_adagrad(GPU, dtype, table=5000, width=width)


def test_adagrad_on_distinct_rows_needs_no_sort() -> None:
    cases.check_distinct_adagrad(GPU, table=5000, width=64)


def test_adagrad_repeats_to_the_bit() -> None:
    rows = torch.randint(0, 50, (5000,), device=GPU)
    grad = torch.randn(5000, 64, device=GPU)
    results = []
    for _ in range(3):
        weight, state = torch.ones(50, 64, device=GPU), torch.zeros(50, device=GPU)
        rowwise_adagrad_(weight, state, rows, grad, lr=0.1)
        results.append(weight)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("recency", [False, True])
@pytest.mark.parametrize("sometimes_whole", [False, True])
def test_stochastic_length_keeps_the_reference_s_tokens(recency: bool, sometimes_whole: bool) -> None:
    cases.check_length(GPU, recency=recency, sometimes_whole=sometimes_whole, longest=20_000)


def test_time_buckets_are_exact_at_their_thresholds() -> None:
    cases.check_thresholds(GPU, 40)


def test_levels_of_time_are_exact_where_bounds_lie_between_tiles() -> None:
    cases.check_bounds_between_tiles(GPU, 24)
