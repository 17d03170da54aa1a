"""Random jagged batches for the attention tests: tokens, biases, times and masks, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kernels import TimeBuckets, hstu_attention
from tests.kernels.yardstick import relative_error


@dataclass(frozen=True)
class Batch:
    """Attention's arguments; biases may be None."""

    q: Tensor
    k: Tensor
    v: Tensor
    offsets: Tensor
    pos: Tensor | None
    time: Tensor | None
    buckets: TimeBuckets | None
    query_time: Tensor
    key_time: Tensor
    num_context: Tensor | None
    num_targets: Tensor | None
    grad: Tensor
    norm_len: float = 37.0

    def with_times(self, query_time: Tensor, key_time: Tensor) -> Batch:
        return replace(self, query_time=query_time, key_time=key_time)


def make_batch(
    lengths: Sequence[int], *, heads: int = 2, qk: int = 16, value: int = 24, positions: int = 50,
    num_buckets: int = 40,
    pos_heads: int = 1, time_heads: int = 1, context: int = 0, targets: int = 0, unit_ms: float = 1000.0, seed: int = 0,
) -> Batch:  # fmt: skip
    """Users of these lengths, with sorted bursty times: half of the events have the same time as the previous one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = int(offsets[-1])
    gap = 10 ** (torch.rand(total, generator=generator) * 9) * (torch.rand(total, generator=generator) < 0.5)
    key_time = 10**12 + gap.long().cumsum(0)
    sizes = torch.tensor(lengths)
    return Batch(
        q=normal(total, heads, qk) * 0.5,
        k=normal(total, heads, qk) * 0.5,
        v=normal(total, heads, value),
        offsets=offsets,
        pos=normal(pos_heads, positions) * 0.5 if pos_heads else None,
        time=normal(time_heads, num_buckets) * 0.5 if time_heads else None,
        buckets=TimeBuckets.logarithmic(num_buckets, unit_ms) if time_heads else None,
        query_time=key_time + 700,
        key_time=key_time,
        num_context=sizes.clamp(max=context) if context else None,
        num_targets=sizes.clamp(max=targets) if targets else None,
        grad=normal(total, heads, value),
    )


def attend(batch: Batch, dtype: torch.dtype, backend: str, **options: Any) -> dict[str, Tensor]:
    """The output and every gradient, by name. Biases stay float32 when tokens are bfloat16."""
    table_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    inputs: dict[str, Tensor | None] = {
        name: None if tensor is None else tensor.to(to, copy=True).requires_grad_()
        for name, tensor, to in (
            ("q", batch.q, dtype),
            ("k", batch.k, dtype),
            ("v", batch.v, dtype),
            ("pos", batch.pos, table_dtype),
            ("time", batch.time, table_dtype),
        )
    }
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    assert q is not None
    assert k is not None
    assert v is not None
    out = hstu_attention(
        q, k, v, batch.offsets, norm_len=batch.norm_len, pos_bias_GP=inputs["pos"], time_bias_GK=inputs["time"],
        time_buckets=batch.buckets, query_time_T=batch.query_time, key_time_T=batch.key_time,
        num_context_B=batch.num_context, num_targets_B=batch.num_targets, backend=backend, **options,
    )  # fmt: skip
    out.backward(batch.grad.to(dtype))
    results = {"out": out.detach()}
    for name, tensor in inputs.items():
        if tensor is not None:
            results[f"d{name}"] = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    return results


def errors(results: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors by name; both sides must have the same names."""
    assert results.keys() == expected.keys()
    return {name: relative_error(results[name], expected[name]) for name in expected}
