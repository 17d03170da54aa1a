# mypy: allow-untyped-calls
"""Attention for users of 128 to 16,384 tokens, beside the alternatives on a GPU: cuDNN's and FlashAttention's softmax.

Those two compute less (no bias, no time) and more (a softmax). The published numbers are of NVIDIA's own HSTU kernel,
without rab, on an H100. All count only causal pairs: 2 products forward, 5 backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.on_gpu.attention import Case, make_case, parts
from bench.on_gpu.report import Clock, Row, row

TOKENS, HEADS, WIDTH = 131_072, 4, 128
LENGTHS = (128, 512, 1024, 2048, 4096, 8192, 16_384)
PUBLISHED = {128: (57, 46), 1024: (391, 313), 4096: (505, 439)}
"""TFLOP/s forward and backward: NVIDIA's HSTU kernel on an H100, bfloat16, 4 heads of 128, no rab."""
PEERS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention": SDPBackend.FLASH_ATTENTION}


def by_length(clock: Clock) -> Iterator[Row]:
    """Rows for each length, all with the same total number of tokens."""
    for length in (12, 20) if clock.rehearsal else LENGTHS:
        users, heads, width = (2, 1, 16) if clock.rehearsal else (TOKENS // length, HEADS, WIDTH)
        case = make_case(clock, users, length, heads, width)
        bare, rab = (_tflops(case, clock, with_rab) for with_rab in (False, True))
        peers = {name: _peer(case, clock, backend) for name, backend in PEERS.items()}
        for index, way in enumerate(("forward", "backward")):
            beside = [f"{name} {_said(found[index])}" for name, found in peers.items()]
            if length in PUBLISHED:
                beside.append(f"published HSTU on H100 {PUBLISHED[length][index]}")
            name = f"attention {way}, N {length}, H{heads} d{width}"
            yield row(f"{name}, no rab", bare[index], "TFLOP/s", note="; ".join(beside))
            yield row(f"{name}, rab", rab[index], "TFLOP/s", note=f"{bare[index] / rab[index] - 1:.0%} over none")


def _tflops(case: Case, clock: Clock, with_rab: bool) -> tuple[float, float]:
    ms = {name: clock.graph_ms(run) for name, run in parts(case, with_rab).items()}
    return case.tflops(ms["forward"], 1), case.tflops(ms["keys"] + ms["queries"], 2.5)


def _said(tflops: float | None) -> str:
    return "-" if tflops is None else f"{tflops:.0f}"


def _peer(case: Case, clock: Clock, backend: SDPBackend) -> tuple[float | None, float | None]:
    """TFLOP/s of causal softmax attention in torch, forward and backward; None if it does not run."""
    if clock.rehearsal:
        return None, None
    users = len(case.offsets) - 1
    q, k, v, grad = (
        x.unflatten(0, (users, -1)).transpose(1, 2).detach().requires_grad_()
        for x in (case.q, case.k, case.v, case.grad)
    )
    attend = partial(functional.scaled_dot_product_attention, q, k, v, is_causal=True)
    try:
        with sdpa_kernel(backend):
            forward_ms = clock.median_ms(attend)
            out: Tensor = attend()
            backward: Callable[[], object] = partial(torch.autograd.grad, out, [q, k, v], grad, retain_graph=True)
            backward_ms = clock.median_ms(backward)
    except RuntimeError:  # that a backend refuses the shape is a result too
        return None, None
    return case.tflops(forward_ms, 1), case.tflops(backward_ms, 2.5)
