"""Each op's Triton version against its reference in float64, on any device: for tests in the interpreter and on a GPU.

Inputs are drawn on the CPU; the op runs on the given device; results are copied back for comparison. Outputs are judged
by ‖out - ref‖ / ‖ref‖: float32 by a bound, bfloat16 by at most twice PyTorch's error in the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels import (
    Dither,
    LayerParams,
    TimeBuckets,
    delta_attention,
    full_softmax,
    hstu_attention,
    hstu_layer,
    rank_of_target,
    rowwise_adagrad_,
    sampled_softmax,
    stochastic_length,
    top_k,
)

Operation = Callable[..., Any]
FORWARD, GRADIENT = 1e-5, 1e-4


def error(result: Tensor, expected: Tensor) -> float:
    """‖result - expected‖ / ‖expected‖ in float64; infinite if anything is not finite."""
    result, expected = result.detach().double().cpu(), expected.detach().double().cpu()
    if not bool(torch.isfinite(result).all()):
        return float("inf")
    return float((result - expected).norm() / expected.norm().clamp(min=1e-300))


def move(value: Any, device: str, dtype: torch.dtype) -> Any:
    """Move tensors to the device, those of floats as ``dtype`` and requiring gradients; layers' weights too."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            return value.to(device, dtype).detach().requires_grad_()
        return value.to(device)
    if isinstance(value, LayerParams):
        return replace(value, **{name: move(tensor, device, dtype) for name, tensor in vars(value).items()})
    return value


def leaves(arguments: Sequence[Any]) -> list[Tensor]:
    """The tensors that get gradients, in order."""
    found: list[Tensor] = []
    for value in arguments:
        if isinstance(value, LayerParams):
            found += leaves(list(vars(value).values()))
        elif isinstance(value, Tensor) and value.requires_grad:
            found.append(value)
    return found


def run(
    op: Operation, arguments: dict[str, Any], grad: Tensor | None, device: str, dtype: torch.dtype, backend: str,
    keep: Sequence[str] = (),
) -> list[Tensor]:  # fmt: skip
    """[output, gradients…]; ``keep``: names of inputs that stay float32 (log q) and get no gradient."""
    moved = {name: move(value, device, dtype) for name, value in arguments.items() if name not in keep}
    moved |= {name: value.to(device) for name, value in arguments.items() if name in keep}
    out = op(**moved, backend=backend)
    if grad is None:
        return [out.detach()]
    inputs = leaves(list(moved.values()))
    gradients = torch.autograd.grad(out, inputs, grad.to(device, out.dtype), allow_unused=True)
    return [out.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))]


def compare(
    op: Operation, arguments: dict[str, Any], grad: Tensor | None, device: str, dtype: torch.dtype = torch.float32,
    keep: Sequence[str] = (),
) -> list[float]:  # fmt: skip
    """Errors of output and gradients; asserts that each is within its bound."""
    result = run(op, arguments, grad, device, dtype, "triton", keep)
    expected = run(op, arguments, grad, "cpu", torch.float64, "reference", keep)
    errors = [error(*pair) for pair in zip(result, expected, strict=True)]
    bounds = [FORWARD] + [GRADIENT] * (len(errors) - 1)
    if dtype != torch.float32:
        same = run(op, arguments, grad, device, dtype, "reference", keep)
        bounds = [2 * error(*pair) + 1e-3 for pair in zip(same, expected, strict=True)]
    assert all(e <= b for e, b in zip(errors, bounds, strict=True)), f"errors {errors}, bounds {bounds}"
    return errors


def normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator) * scale


def times(generator: torch.Generator, lengths: Sequence[int], ordered: bool = True, span: int = 10**10) -> Tensor:
    """Milliseconds; half of a user's events have the same time as the previous one, as in real data."""
    total = sum(lengths)
    if not ordered:
        return torch.randint(0, span, (total,), generator=generator)
    gap = (10 ** (torch.rand(total, generator=generator, dtype=torch.float64) * 8)).long()
    gap *= torch.rand(total, generator=generator) < 0.5
    return 10**12 + gap.cumsum(0)


def offsets_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def attention_case(
    lengths: Sequence[int], *, heads: int = 2, qk: int = 16, value: int = 16, positions: int = 20, buckets: int = 12,
    groups: int = 2, context: int = 0, targets: int = 0, ordered: bool = True, use_position: bool = True,
    use_time: bool = True, extreme: bool = False, seed: int = 0,
) -> tuple[dict[str, Any], Tensor]:  # fmt: skip
    """(arguments of `hstu_attention`, gradient of its output)."""
    g = torch.Generator().manual_seed(seed)
    total, sizes = sum(lengths), torch.tensor(list(lengths))
    scale = qk**-0.25
    arguments: dict[str, Any] = {
        "q_THD": normal(g, total, heads, qk, scale=scale),
        "k_THD": normal(g, total, heads, qk, scale=scale),
        "v_THE": normal(g, total, heads, value),
        "offsets_B1": offsets_of(lengths),
        "norm_len": 50.0,
    }
    if use_position:
        arguments["pos_bias_GP"] = normal(g, groups, positions)
    if use_time:
        key_time = times(g, lengths, ordered)
        if extreme:
            key_time[: total // 2] = -(2**62)
            key_time[total // 2 :] = 2**62 - 1
        arguments |= {
            "time_bias_GK": normal(g, groups, buckets), "time_buckets": TimeBuckets.logarithmic(buckets, 1000.0, 2.0),
            "query_time_T": key_time + (0 if extreme else 700), "key_time_T": key_time,
        }  # fmt: skip
    if context:
        arguments["num_context_B"] = sizes.clamp(max=context)
    if targets:
        arguments["num_targets_B"] = sizes.clamp(max=targets)
    return arguments, normal(g, total, heads, value)


def check_attention(device: str, dtype: torch.dtype = torch.float32, **shape: Any) -> None:
    arguments, grad = attention_case(**shape)
    compare(hstu_attention, arguments, grad, device, dtype)


def check_thresholds(device: str, num_buckets: int) -> None:
    """Differences one below, at, and one above each threshold, near and far; the bias shows which bucket was used."""
    buckets = TimeBuckets.logarithmic(num_buckets, 1000.0, 2.0)
    generator = torch.Generator().manual_seed(0)
    ends = -buckets.thresholds_K1
    key_time = torch.cat([*(ends + shift for shift in (-1, 0, 1)), torch.zeros(300, dtype=torch.int64)]).sort().values
    tokens = len(key_time)
    arguments = {
        "q_THD": torch.zeros(tokens, 1, 16), "k_THD": torch.zeros(tokens, 1, 16),
        "v_THE": normal(generator, tokens, 1, 16), "offsets_B1": torch.tensor([0, tokens]), "norm_len": 10.0,
        "time_bias_GK": normal(generator, 1, num_buckets), "time_buckets": buckets, "query_time_T": key_time,
        "key_time_T": key_time,
    }  # fmt: skip
    compare(hstu_attention, arguments, normal(generator, tokens, 1, 16), device)


def check_bounds_between_tiles(device: str, num_blocks: int = 5) -> None:
    """Blocks of 64 keys with the same time: every threshold's bound is between two tiles, for some rows or for all."""
    g = torch.Generator().manual_seed(0)
    tokens, buckets = 64 * num_blocks, TimeBuckets.logarithmic(24, 1000.0, 2.0)
    key_time = (10 ** (3 + torch.rand(num_blocks, generator=g, dtype=torch.float64) * 4)).long().cumsum(0)
    key_time = key_time.repeat_interleave(64)
    for spread in (1, 10**6):
        arguments = {
            "q_THD": normal(g, tokens, 1, 16, scale=0.5), "k_THD": normal(g, tokens, 1, 16, scale=0.5),
            "v_THE": normal(g, tokens, 1, 16), "offsets_B1": torch.tensor([0, tokens - 70, tokens]), "norm_len": 10.0,
            "time_bias_GK": normal(g, 1, 24), "time_buckets": buckets,
            "query_time_T": key_time + torch.randint(0, spread, (tokens,), generator=g), "key_time_T": key_time,
        }  # fmt: skip
        compare(hstu_attention, arguments, normal(g, tokens, 1, 16), device)


def layer_case(
    lengths: Sequence[int], *, model: int = 24, heads: int = 2, qk: int = 12, value: int = 10, dropout: float = 0.2,
    bias: bool = True, positions: int = 20, buckets: int = 9, seed: int = 0,
) -> tuple[dict[str, Any], Tensor]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    wide, inner, total = heads * 2 * (qk + value), heads * value, sum(lengths)
    params = LayerParams(
        1 + normal(g, model, scale=0.1), normal(g, model, scale=0.1), normal(g, model, wide, scale=model**-0.5),
        normal(g, wide, scale=0.1) if bias else None, 1 + normal(g, inner, scale=0.1), normal(g, inner, scale=0.1),
        normal(g, inner, model, scale=inner**-0.5), normal(g, model, scale=0.1) if bias else None,
    )  # fmt: skip
    key_time = times(g, lengths)
    arguments = {
        "x_TM": normal(g, total, model), "params": params, "offsets_B1": offsets_of(lengths), "num_heads": heads,
        "norm_len": 30.0, "pos_bias_GP": normal(g, heads, positions), "time_bias_GK": normal(g, heads, buckets),
        "time_buckets": TimeBuckets.logarithmic(buckets), "query_time_T": key_time, "key_time_T": key_time,
        "dropout": dropout, "seed": -(2**40) - 7,
    }  # fmt: skip
    return arguments, normal(g, total, model)


def check_layer(device: str, dtype: torch.dtype = torch.float32, **shape: Any) -> None:
    arguments, grad = layer_case(**shape)
    compare(hstu_layer, arguments, grad, device, dtype)


def delta_case(
    new: Sequence[int], cached: Sequence[int], *, heads: int = 2, qk: int = 12, value: int = 10, positions: int = 20,
    buckets: int = 9, groups: int = 2, targets: int = 0, biases: bool = True, seed: int = 0,
) -> tuple[dict[str, Any], Tensor]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    total, held = sum(new), sum(cached) + 7
    time = times(g, new) + 10**12
    arguments: dict[str, Any] = {
        "q_SHD": normal(g, total, heads, qk, scale=qk**-0.25), "k_SHD": normal(g, total, heads, qk, scale=qk**-0.25),
        "v_SHE": normal(g, total, heads, value), "delta_offsets_B1": offsets_of(new),
        "cache_k_CHD": normal(g, held, heads, qk), "cache_v_CHE": normal(g, held, heads, value),
        "cache_start_B": offsets_of(cached)[:-1] + 3, "cache_len_B": torch.tensor(list(cached)), "norm_len": 30.0,
    }  # fmt: skip
    if biases:
        arguments |= {
            "pos_bias_GP": normal(g, groups, positions), "time_bias_GK": normal(g, groups, buckets),
            "time_buckets": TimeBuckets.logarithmic(buckets, 1000.0, 4.0), "query_time_S": time, "key_time_S": time - 5,
            "cache_time_C": times(g, [held], ordered=False),
        }  # fmt: skip
    if targets:
        arguments["num_targets_B"] = torch.tensor(list(new)).clamp(max=targets)
    return arguments, normal(g, total, heads, value)


def check_delta(device: str, dtype: torch.dtype = torch.float32, **shape: Any) -> None:
    arguments, grad = delta_case(**shape)
    compare(delta_attention, arguments, grad, device, dtype)


def check_sampled(
    device: str, dtype: torch.dtype = torch.float32, *, rows: int = 21, table: int = 40, width: int = 12,
    negatives: str = "shared", num_negatives: int = 18, normalize: bool = True, log_q: bool = False, seed: int = 0,
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, table, (rows,), generator=g)
    shape = {"shared": (num_negatives,), "own": (rows, num_negatives), "batch": (rows,)}[negatives]
    slots = target if negatives == "batch" else torch.randint(-1, table, shape, generator=g)
    scale = 1.0 if normalize else width**-0.25
    arguments = {
        "query_RD": normal(g, rows, width, scale=scale), "table_UD": normal(g, table, width, scale=scale),
        "target_R": target, "negatives": slots, "temperature": 0.3, "normalize": normalize, "mask_hits": not log_q,
        "log_q_target_R": normal(g, rows) if log_q else None, "log_q_negatives": normal(g, *shape) if log_q else None,
    }  # fmt: skip
    keep = ("log_q_target_R", "log_q_negatives") if log_q else ()
    compare(sampled_softmax, arguments, normal(g, rows), device, dtype, keep)


def check_full(
    device: str, dtype: torch.dtype = torch.float32, *, rows: int = 21, table: int = 40, width: int = 12,
    valid: bool = False, seed: int = 0,
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    arguments = {
        "query_RD": normal(g, rows, width), "table_VD": normal(g, table, width),
        "target_R": torch.randint(0, table, (rows,), generator=g), "temperature": 0.3,
        "valid_V": torch.rand(table, generator=g) < 0.7 if valid else None,
    }  # fmt: skip
    compare(full_softmax, arguments, normal(g, rows), device, dtype)


def best_case(rows: int, table: int, width: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(common arguments, masks) with small integers: inner products are exact, ties are many."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randint(-1, 2, (table, width), generator=g).float()
    weight[table // 2 : table // 2 + 10] = weight[5]
    counts = torch.randint(0, 5, (rows,), generator=g)
    common = {"query_RD": torch.randint(-2, 3, (rows, width), generator=g).float(), "table_VD": weight}
    masks = {
        "valid_V": torch.rand(table, generator=g) < 0.7,
        "exclude_rows": torch.randint(0, table, (int(counts.sum()),), generator=g),
        "exclude_offsets_R1": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
    }
    return common, masks


def check_best(
    device: str, *, rows: int = 21, table: int = 70, width: int = 12, k: int = 9, masked: bool = True, seed: int = 0
) -> None:  # fmt: skip
    common, masks = best_case(rows, table, width, seed)
    target = torch.randint(0, table, (rows,), generator=torch.Generator().manual_seed(seed))
    target[:3] = 5
    arguments = common | (masks if masked else {})
    there = {name: value.to(device) for name, value in arguments.items()}
    ranks = rank_of_target(**there, target_R=target.to(device), normalize=False, backend="triton")
    expected = rank_of_target(**arguments, target_R=target, normalize=False, backend="reference")
    assert ranks.tolist() == expected.tolist()
    scores, best = top_k(**there, k=k, normalize=False, backend="triton")
    expected_scores, expected_best = top_k(**arguments, k=k, normalize=False, backend="reference")
    assert best.tolist() == expected_best.tolist()
    assert scores.tolist() == expected_scores.tolist()


def check_adagrad(
    device: str, dtype: torch.dtype = torch.float32, *, table: int = 50, width: int = 12, count: int = 200,
    repeats: int = 60, weight_decay: float = 0.1, seed: int = 0,
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(-1, table, (count,), generator=g)
    rows[:repeats] = 3
    weight, state, grad = normal(g, table, width), torch.rand(table, generator=g), normal(g, count, width)
    weight = weight.to(dtype)
    there = [x.to(device, copy=True) for x in (weight, state, rows, grad)]
    rowwise_adagrad_(*there, lr=0.1, weight_decay=weight_decay, backend="triton")
    exact = [weight.double(), state.double(), rows, grad.double()]
    rowwise_adagrad_(*exact, lr=0.1, weight_decay=weight_decay, backend="reference")
    assert error(there[0], exact[0]) < (1e-6 if dtype == torch.float32 else 4e-3)
    assert error(there[1], exact[1]) < 1e-5


def check_dithered_adagrad(device: str, dtype: torch.dtype, *, table: int = 50, width: int = 12) -> None:
    """Rows that move from zero by exactly the learning rate, rounded as the reference does, at any size."""
    rows = torch.randperm(table, generator=torch.Generator().manual_seed(1))[: table // 2]
    grad = torch.where(normal(torch.Generator().manual_seed(2), table // 2, width) > 0, 1.0, -1.0)
    for number, size in enumerate((2.1e-10, 5e-8, 7e-5, 0.0123, 1.7, 65_510.0, 1e6)):
        lr, found = float(torch.tensor(size)), []
        for where, backend in ((device, "triton"), ("cpu", "reference")):
            weight, state = torch.zeros(table, width, dtype=dtype, device=where), torch.zeros(table, device=where)
            dither = Dither.of((1, number), 3, 2)
            rowwise_adagrad_(
                weight, state, rows.to(where), grad.to(where), lr=lr, eps=1e-30, distinct=True, dither=dither,
                backend=backend,
            )  # fmt: skip
            found.append(weight.cpu().view(torch.int16))
        assert torch.equal(*found), size


def check_distinct_adagrad(device: str, *, table: int = 50, width: int = 12) -> None:
    """Distinct rows in any order, known to be distinct or not: the same to the bit."""
    g = torch.Generator().manual_seed(1)
    rows, grad = torch.randperm(table, generator=g)[: table // 2].to(device), normal(g, table // 2, width).to(device)
    results = []
    for distinct in (False, True):
        weight, state = torch.ones(table, width, device=device), torch.zeros(table, device=device)
        rowwise_adagrad_(weight, state, rows, grad, lr=0.1, distinct=distinct, backend="triton")
        results.append((weight, state))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert int((results[0][1] > 0).sum()) == table // 2


def check_length(device: str, *, recency: bool, sometimes_whole: bool, longest: int = 200) -> None:
    lengths = torch.tensor([40, 0, 6, longest, 2, longest // 2])
    arguments = {
        "offsets_B1": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "seeds_B": torch.tensor([1, -5, 2**62, -(2**63), 77, 5]),
        "must_keep_last_B": torch.tensor([4, 0, 2, 0, 2, 10]),
    }
    options: dict[str, Any] = {
        "max_kept": 16, "mode": "recency" if recency else "uniform", "unit": 2, "sometimes_whole": sometimes_whole
    }  # fmt: skip
    there = {name: value.to(device) for name, value in arguments.items()}
    tokens, offsets = stochastic_length(**there, **options, backend="triton")
    expected_tokens, expected_offsets = stochastic_length(**arguments, **options, backend="reference")
    assert tokens.tolist() == expected_tokens.tolist()
    assert offsets.tolist() == expected_offsets.tolist()
