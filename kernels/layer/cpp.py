"""The layer on the CPU: projections by torch's matrix product, everything else in C++."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernels.attention.cpp import attention
from kernels.layer import reference
from kernels.layer.params import LayerParams


def layer(
    x_TM: Tensor,
    params: LayerParams,
    offsets_B1: Tensor,
    *,
    num_heads: int,
    norm_len: float,
    dropout: float,
    seed: int,
    eps: float,
    **pairs: Any,
) -> Tensor:
    """`kernels.hstu_layer` on the CPU, after validation."""
    u, v, q, k = reference.project(x_TM, params, num_heads=num_heads, eps=eps)
    attended = attention(q, k, v, offsets_B1, norm_len=norm_len, **pairs)
    return reference.output(x_TM, attended, u, params, dropout=dropout, seed=seed, eps=eps)
