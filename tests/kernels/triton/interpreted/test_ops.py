"""Every Triton kernel, forward and backward, in Triton's interpreter: run by `test_interpreter.py` in its own process.

Also in bfloat16, with `tests.kernels.triton.bfloat16`, so that its tolerances are tested before a GPU is available.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run in a process of its own by test_interpreter.py", allow_module_level=True)

from kernels import BucketCache, hstu_attention, hstu_layer_output, hstu_layer_project
from kernels.attention import triton_launch
from kernels.attention.triton_tile import Tile
from tests.kernels import test_fuxi
from tests.kernels.triton import cases
from tests.kernels.yardstick import relative_error

CPU = "cpu"
ATTENTION: dict[str, dict[str, Any]] = {
    "ragged users, one empty, odd widths": {"lengths": [5, 0, 33, 1, 40], "qk": 10, "value": 12},
    "context and targets, shared biases": {
        "lengths": [5, 0, 33, 3], "context": 4, "targets": 6, "groups": 1, "qk": 10, "value": 12,
    },
    "times that go back": {"lengths": [5, 30], "ordered": False},
    "a user beyond the near table": {"lengths": [290, 3], "heads": 1, "groups": 1, "positions": 100, "buckets": 7},
    "beyond the near table, going back, more positions than tokens": {
        "lengths": [260], "heads": 1, "groups": 1, "positions": 400, "ordered": False, "buckets": 7,
    },
    "many thresholds among far keys, several users": {
        "lengths": [350, 30, 270], "heads": 1, "groups": 1, "positions": 50, "buckets": 30,
    },
    "context beyond the near table": {
        "lengths": [3, 330], "context": 280, "targets": 10, "heads": 1, "groups": 1, "buckets": 20,
    },
    "context longer than a tile": {"lengths": [3, 60], "context": 45, "heads": 1, "groups": 1, "targets": 3},
    "position only": {"lengths": [20, 30], "use_time": False},
    "time only": {"lengths": [20, 30], "use_position": False},
    "times at the ends of 64 bits": {"lengths": [20, 20], "extreme": True},
    "one bucket, one position": {"lengths": [9], "buckets": 1, "positions": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_and_its_gradients_equal_the_reference(name: str) -> None:
    cases.check_attention(CPU, **ATTENTION[name])


@pytest.mark.parametrize("name", ["ragged users, one empty, odd widths", "context and targets, shared biases"])
def test_attention_in_bfloat16_is_as_near_as_pytorch_s(name: str) -> None:
    cases.check_attention(CPU, torch.bfloat16, **ATTENTION[name])


@pytest.mark.parametrize(
    "name", ["many thresholds among far keys, several users", "context longer than a tile", "times that go back"]
)
def test_attention_by_the_copy_engine_equals_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "MANY_TOKENS", 1)
    cases.check_attention(CPU, **ATTENTION[name])


@pytest.mark.parametrize("tile", [(32, 32), (32, 64), (128, 64)], ids=str)
def test_attention_is_the_same_in_tiles_of_any_shape(tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile depends on the GPU, the width and the dtype."""
    for name in ("forward_tile", "query_gradient_tile", "key_gradient_tile"):
        monkeypatch.setattr(triton_launch, name, lambda _: Tile(*tile, 4, 1))
    shape = {"heads": 1, "groups": 1, "positions": 200, "buckets": 7}
    cases.check_attention(CPU, lengths=[270, 3, 60], context=5, targets=3, **shape)


def test_the_other_ops_in_bfloat16_are_as_near_as_pytorch_s() -> None:
    cases.check_layer(CPU, torch.bfloat16, lengths=[5, 0, 60], model=64, qk=32, value=32)
    cases.check_delta(CPU, torch.bfloat16, new=[3, 0, 20, 1], cached=[40, 5, 0, 70])
    for negatives in ("shared", "own", "batch"):
        cases.check_sampled(CPU, torch.bfloat16, negatives=negatives, width=20, log_q=negatives != "own")
    cases.check_full(CPU, torch.bfloat16, valid=True, width=20)


def test_zeros_in_place_of_attention_would_be_noticed() -> None:
    arguments, _ = cases.attention_case([30])
    expected = cases.run(hstu_attention, arguments, None, CPU, torch.float64, "reference")[0]
    assert cases.error(torch.zeros_like(expected), expected) > 1e3 * cases.FORWARD


@pytest.mark.parametrize("changed", ["bound", "position"])
def test_a_bias_that_is_off_by_one_would_be_noticed(changed: str) -> None:
    arguments, grad = cases.attention_case([40], positions=30)
    expected = cases.run(hstu_attention, arguments, grad, CPU, torch.float64, "reference")
    if changed == "position":
        arguments["pos_bias_GP"] = arguments["pos_bias_GP"].roll(1, dims=1)
    else:
        arguments["query_time_T"] = arguments["query_time_T"] + 10**6
    result = cases.run(hstu_attention, arguments, grad, CPU, torch.float32, "triton")
    assert cases.error(result[0], expected[0]) > 10 * cases.FORWARD


def test_time_buckets_are_exact_at_their_thresholds() -> None:
    cases.check_thresholds(CPU, 12)


@pytest.mark.parametrize("tile", [None, (32, 32), (128, 64)], ids=str)
def test_levels_of_time_are_exact_where_bounds_lie_between_tiles(
    tile: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tile is not None:
        monkeypatch.setattr(triton_launch, "query_gradient_tile", lambda _: Tile(*tile, 4, 1))
    cases.check_bounds_between_tiles(CPU)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_cache_of_buckets_serves_its_inputs_and_no_others(ordered: bool) -> None:
    arguments, _ = cases.attention_case([20, 12], ordered=ordered)
    cache = BucketCache()
    first = hstu_attention(**arguments, bucket_cache=cache, backend="triton")
    assert torch.equal(first, hstu_attention(**arguments, backend="triton"))
    tables = cache.value
    assert torch.equal(hstu_attention(**arguments, bucket_cache=cache, backend="triton"), first)
    assert cache.value is tables
    arguments["query_time_T"] += 10**6
    again = hstu_attention(**arguments, bucket_cache=cache, backend="triton")
    assert torch.equal(again, hstu_attention(**arguments, backend="triton"))
    assert not torch.equal(again, first)


def test_attention_runs_in_inference_mode() -> None:
    arguments, _ = cases.attention_case([20])
    with torch.inference_mode():
        moved = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
        out = hstu_attention(**moved, bucket_cache=BucketCache(), backend="triton")
    assert torch.equal(out, hstu_attention(**arguments, backend="triton"))


def test_no_users_and_no_tokens_give_nothing() -> None:
    arguments, grad = cases.attention_case([0, 0])
    result = cases.run(hstu_attention, arguments, grad, CPU, torch.float32, "triton")
    assert result[0].shape == (0, 2, 16)
    assert not result[4].any()


@pytest.mark.parametrize(("dropout", "bias"), [(0.2, True), (0.0, False)])
def test_a_layer_and_its_gradients_equal_the_reference(dropout: float, bias: bool) -> None:
    cases.check_layer(CPU, lengths=[5, 0, 33, 7], dropout=dropout, bias=bias)


def test_a_layer_from_its_halves_is_the_layer() -> None:
    arguments, _ = cases.layer_case([9, 20], dropout=0.0)
    x, params = arguments["x_TM"], arguments["params"]
    u, v, q, k = hstu_layer_project(x, params, num_heads=2, backend="triton")
    names = ("offsets_B1", "norm_len", "pos_bias_GP", "time_bias_GK", "time_buckets", "query_time_T", "key_time_T")
    attended = hstu_attention(q, k, v, **{name: arguments[name] for name in names}, backend="triton")
    y = hstu_layer_output(x, attended, u, params, backend="triton")
    whole = cases.run(cases.hstu_layer, arguments, None, CPU, torch.float32, "triton")[0]
    assert torch.equal(y, whole)


@pytest.mark.parametrize(
    "shape",
    [
        {"new": [3, 0, 20, 1], "cached": [40, 5, 0, 70]},
        {"new": [35, 2], "cached": [60, 3], "targets": 30, "groups": 1},
        {"new": [2], "cached": [50], "biases": False},
    ],
    ids=["ragged", "candidates", "no biases"],
)
def test_delta_attention_and_its_gradients_equal_the_reference(shape: dict[str, Any]) -> None:
    cases.check_delta(CPU, **shape)


def test_delta_attention_s_layers_share_what_is_known_of_the_new_tokens() -> None:
    arguments, _ = cases.delta_case([3, 20], [40, 5])
    cache = BucketCache()
    first = cases.delta_attention(**arguments, bucket_cache=cache, backend="triton")
    tables = cache.value
    assert tables is not None
    assert torch.equal(cases.delta_attention(**arguments, bucket_cache=cache, backend="triton"), first)
    assert cache.value is tables
    assert torch.equal(cases.delta_attention(**arguments, backend="triton"), first)


@pytest.mark.parametrize(
    ("negatives", "log_q", "normalize"),
    [
        ("shared", False, False), ("shared", True, True), ("own", False, True), ("own", True, False),
        ("batch", False, False), ("batch", True, True),
    ],
)  # fmt: skip
def test_sampled_softmax_and_its_gradients_equal_the_reference(negatives: str, log_q: bool, normalize: bool) -> None:
    cases.check_sampled(CPU, negatives=negatives, log_q=log_q, normalize=normalize)


@pytest.mark.parametrize("valid", [False, True])
def test_full_softmax_and_its_gradients_equal_the_reference(valid: bool) -> None:
    cases.check_full(CPU, valid=valid)


@pytest.mark.parametrize("masked", [False, True])
def test_ranks_and_best_rows_equal_the_reference_with_many_ties(masked: bool) -> None:
    cases.check_best(CPU, masked=masked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adagrad_adds_repeated_rows_and_skips_empty_ones(dtype: torch.dtype) -> None:
    cases.check_adagrad(CPU, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adagrad_rounds_stochastically_as_the_reference_does(dtype: torch.dtype) -> None:
    cases.check_dithered_adagrad(CPU, dtype)


def test_adagrad_on_distinct_rows_needs_no_sort() -> None:
    cases.check_distinct_adagrad(CPU)


@pytest.mark.parametrize("recency", [False, True])
@pytest.mark.parametrize("sometimes_whole", [False, True])
def test_stochastic_length_keeps_the_reference_s_tokens(recency: bool, sometimes_whole: bool) -> None:
    cases.check_length(CPU, recency=recency, sometimes_whole=sometimes_whole)


def test_a_fuxi_layer_and_its_gradients_equal_the_reference() -> None:
    case = test_fuxi.made([40, 0, 7])
    expected = test_fuxi.run(case, torch.float64, "reference")
    found = test_fuxi.run(case, torch.float32, "triton")
    for name, value in expected.items():
        assert relative_error(found[name], value) < 1e-5, name
