"""Stochastic length in C++."""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from kernels.library import address, baseline, num_threads


def stochastic_length(
    offsets_B1: Tensor,
    seeds_B: Tensor,
    *,
    max_kept: int,
    recency: bool,
    unit: int,
    must_keep_last_B: Tensor,
    sometimes_whole: bool,
) -> tuple[Tensor, Tensor]:
    """See `kernels.stochastic_length`."""
    inputs = [x.contiguous() for x in (offsets_B1, seeds_B, must_keep_last_B)]
    new_offsets_B1 = torch.empty_like(inputs[0])

    def call(kept: Tensor | None) -> None:
        failed = baseline("stochastic_length")(
            *(c_void_p(address(x)) for x in inputs),
            c_int64(len(seeds_B)),
            c_int64(max_kept),
            c_int64(unit),
            c_int(recency),
            c_int(sometimes_whole),
            c_void_p(address(new_offsets_B1)),
            c_void_p(address(kept)),
            c_int(num_threads()),
        )
        if failed:
            raise MemoryError(f"stochastic_length: no memory for the keys of {len(seeds_B)} users; use smaller batches")

    call(None)
    kept = torch.empty(int(new_offsets_B1[-1]), dtype=torch.int64)
    if kept.numel():
        call(kept)
    return kept, new_offsets_B1
