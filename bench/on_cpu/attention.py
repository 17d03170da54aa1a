"""HSTU attention with relative biases on one core, forward and backward, beside the padded eager formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.on_cpu.batches import Users, full_batch, long_tail_batch
from bench.peers import hstu as peer
from bench.timing import ARITHMETIC, Row, Work, at_precision, gemm_rate, kernel_share, row, take_turns
from kernels import BucketCache, TimeBuckets, hstu_attention

WIDTH = 50
PRODUCTS = 7  # two forward and five backward, each of 2 · pairs · width operations


def _peer(users: Users, tokens: list[Tensor]) -> Work:
    padded = [users.pad(tensor) for tensor in tokens]
    times = users.pad(users.times)
    leaves = [tensor.requires_grad_() for tensor in padded[:3]]
    tables = [(torch.randn(size) * 0.1).requires_grad_() for size in (2 * users.padded - 1, peer.NUM_BUCKETS + 1)]
    mask = torch.tril(torch.ones(users.padded, users.padded))

    def work() -> object:
        bias = peer.relative_bias(tables[0], tables[1], times)
        out = peer.attention(leaves[0], leaves[1], leaves[2], bias, mask, float(users.padded))
        return torch.autograd.grad(out, [*leaves, *tables], padded[3])

    return work


def _ours(users: Users, tokens: list[Tensor], dtype: torch.dtype, *, bias: bool, cache: BucketCache | None) -> Work:
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in tokens[:3]]
    grad = tokens[3].to(dtype)
    options: dict[str, Any] = {"norm_len": float(users.padded)}
    inputs = leaves
    if bias:
        pos, time = ((torch.randn(1, size) * 0.1).requires_grad_() for size in (users.padded, peer.NUM_BUCKETS + 1))
        options |= {"pos_bias_GP": pos, "time_bias_GK": time, "query_time_T": users.times, "key_time_T": users.times}
        options |= {"time_buckets": TimeBuckets.logarithmic(peer.NUM_BUCKETS + 1, unit_ms=1.0), "bucket_cache": cache}
        inputs = [*leaves, pos, time]

    def work() -> object:
        out = hstu_attention(leaves[0], leaves[1], leaves[2], users.offsets, **options)
        return torch.autograd.grad(out, inputs, grad)

    return work


def rows_of(label: str, users: Users, rounds: int, targets: dict[str, float | None]) -> list[Row]:
    """Each arithmetic, with and without biases; ``targets`` by arithmetic."""
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(users.num_tokens, 1, WIDTH, generator=generator) * 0.3 for _ in range(4)]
    contenders: dict[str, Work] = {"peer": _peer(users, tokens)}
    repeats: dict[str, int] = {}
    for name, (dtype, precision) in ARITHMETIC.items():
        own = {
            name: _ours(users, tokens, dtype, bias=True, cache=None),
            f"{name}, buckets at hand": _ours(users, tokens, dtype, bias=True, cache=BucketCache()),
            f"{name}, no rab": _ours(users, tokens, dtype, bias=False, cache=None),
        }
        contenders |= {key: at_precision(precision, work) for key, work in own.items()}
        repeats |= dict.fromkeys(own, 3)
    seconds = take_turns(contenders, rounds, repeats)
    in_kernel = kernel_share(contenders["peer"])
    flops = PRODUCTS * 2 * users.num_pairs * WIDTH
    rows = []
    for name, (dtype, _) in ARITHMETIC.items():
        at_hand, no_rab = seconds[f"{name}, buckets at hand"], seconds[f"{name}, no rab"]
        share = flops / seconds[name] / gemm_rate(dtype)
        limit = f"{share:.0%} of this core's {name.split()[0]} GEMM"
        plain = seconds["peer"] * (1 - in_kernel) / seconds[name]
        note = f"{seconds['peer'] * 1e3:.0f} ms / {seconds[name] * 1e3:.2f} ms; {limit}; {plain:.1f}x without the"
        note += f" {in_kernel:.0%} of the peer's time that is the operating system's"
        rows.append(
            row(
                f"attention, {label}, {name} over padded eager",
                seconds["peer"] / seconds[name],
                "x",
                targets[name],
                note,
            )
        )
        extra = seconds[name] - at_hand
        note = f"{no_rab * 1e3:.2f} ms without; buckets, made once per batch, cost {extra * 1e3:.2f} ms more"
        rows.append(row(f"cost of rab, {label}, {name}", at_hand / no_rab - 1, "of no rab", 0.10, note, most=True))
    return rows


def rows(quick: bool) -> list[Row]:
    """The report's lines."""
    rounds = 3 if quick else 9
    return [
        *rows_of("128 users of 164", full_batch(), rounds, {"fp32": 17.0, "fp32 high": 17.0, "bf16": 35.0}),
        *rows_of("long tail", long_tail_batch(), 1 if quick else 3, dict.fromkeys(ARITHMETIC, 700.0)),
    ]
