"""The kernels and shapes whose compiled form is held to a budget: those that training on a GPU spends its time in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from kernels.adagrad.triton_op import adagrad_kernel
from kernels.attention.triton_backward import key_gradient_kernel, query_gradient_kernel
from kernels.attention.triton_forward import attention_forward_kernel
from kernels.attention.triton_tile import forward_tile, key_gradient_tile, query_gradient_tile
from kernels.delta.triton_cache import cache_forward_kernel
from kernels.layer.triton_norm import gate_gradient_kernel
from kernels.softmax.triton_shared_slots import shared_forward_kernel, shared_query_gradient_kernel

HOPPER, AMPERE, BLACKWELL = 90, 80, 100


@dataclass(frozen=True)
class Variant:
    """One compilation: a kernel, its constants, and the GPUs it is compiled for."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    architectures: tuple[int, ...] = (HOPPER,)
    types: dict[str, str] = field(default_factory=dict)


TILES = {
    attention_forward_kernel: forward_tile,
    query_gradient_kernel: lambda dtype, width, _: query_gradient_tile(dtype, width),
    key_gradient_kernel: key_gradient_tile,
}


def _attention(
    name: str, kernel: Any, width: int, architecture: int = HOPPER, rab: bool = True, in_order: bool = True,
    masks: bool = False,
) -> Variant:  # fmt: skip
    tile = TILES[kernel](torch.bfloat16, width, architecture)
    constants = {
        "D": width, "E": width, "WIDTH_D": width, "WIDTH_E": width, "BM": tile.queries, "BN": tile.keys,
        "HAS_POSITION": rab, "HAS_TIME": rab, "SORTED": in_order, "HAS_CONTEXT": masks, "HAS_TARGETS": masks,
        "FAST": True, "PRECISION": "ieee",
    }  # fmt: skip
    return Variant(name, kernel, constants, tile.num_warps, tile.num_stages, (architecture,))


def variants() -> list[Variant]:
    """bfloat16 throughout; attention with 64 time buckets."""
    softmax = {
        "D": 256, "WIDTH": 256, "ROWS": 64, "SLOTS": 64, "NORMALIZE": True, "GATHER": True, "HAS_VALID": False,
        "HAS_LOG_Q": True, "MASK_HITS": True, "PRECISION": "ieee",
    }  # fmt: skip
    tables = {
        "query": "*bf16", "table": "*bf16", "target": "*i64", "slots": "*i64", "valid": "*i1", "log_q_slots": "*fp32",
        "parts": "*fp32", "log_sum": "*fp32", "grad": "*fp32", "inverse_temperature": "fp32", "eps": "fp32",
    }  # fmt: skip
    rows = dict.fromkeys(["attended", "u", "weight", "bias", "gated_grad", "gated", "attended_grad", "u_grad"], "*bf16")
    rows |= {"weight_sums": "*fp32", "bias_sums": "*fp32", "eps": "fp32"}
    adagrad = {
        "weight": "*fp32", "state": "*fp32", "sorted": "*i32", "order": "*i64", "grad": "*fp32", "lr": "fp32",
        "eps": "fp32", "weight_decay": "fp32",
    }  # fmt: skip
    delta = {
        "D": 64, "E": 64, "WIDTH_D": 64, "WIDTH_E": 64, "BM": 64, "BN": 64, "HAS_POSITION": True, "HAS_TIME": True,
        "FAST": True, "PRECISION": "ieee",
    }  # fmt: skip
    kernels = {
        "forward": attention_forward_kernel, "queries": query_gradient_kernel, "keys": key_gradient_kernel
    }  # fmt: skip
    cache = {"parts": "*fp32", "tiles": "*i64", "cache_start": "*i64", "cache_len": "*i64"}
    return [
        *(
            _attention(f"{name} d128 rab", kernel, 128, architecture)
            for name, kernel in kernels.items()
            for architecture in (HOPPER, AMPERE, BLACKWELL)
        ),
        *(_attention(f"{name} d64 rab", kernel, 64) for name, kernel in kernels.items()),
        *(_attention(f"{name} d128", kernel, 128, rab=False) for name, kernel in kernels.items()),
        *(_attention(f"{name} d128 rab any order", kernel, 128, in_order=False) for name, kernel in kernels.items()),
        _attention("forward d64 rab masks", attention_forward_kernel, 64, masks=True),
        Variant("delta d64 rab", cache_forward_kernel, delta, 4, 2, types=cache),
        Variant("softmax forward d256", shared_forward_kernel, softmax, 8, 2, types=tables),
        Variant("softmax queries d256", shared_query_gradient_kernel, softmax | {"SLOTS": 32}, 8, 2, types=tables),
        Variant("gate gradient d512", gate_gradient_kernel, {"ROWS": 4, "WIDTH": 512}, 4, 3, types=rows),
        Variant("adagrad d128", adagrad_kernel, {"D": 128, "WIDTH": 128, "ROWS": 32, "AHEAD": 4}, 4, 3, types=adagrad),
    ]
