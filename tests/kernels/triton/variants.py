"""The kernels and shapes whose compiled form must stay within a budget: those that GPU training spends time in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import BucketCache, TimeBuckets, delta_attention, rowwise_adagrad_, sampled_softmax
from kernels.attention import triton_launch
from kernels.attention.triton_bias import make_position_table
from kernels.attention.triton_tile import Tile
from kernels.layer import triton_launch as layer
from kernels.memory import MemoryArrays, MemoryRules
from kernels.memory.arrays import NUM_HOURS
from kernels.softmax import triton_loss  # noqa: F401  (loaded before launches are looked at)
from tests.kernels.test_memory import Stream
from tests.kernels.triton import cases

HOPPER, AMPERE, BLACKWELL = 90, 80, 100
BF16 = torch.bfloat16
KERNELS = {
    "forward": "attention_forward_kernel", "queries": "query_gradient_kernel", "keys": "key_gradient_kernel"
}  # fmt: skip
MEMORY = {
    "predict": "predict_events_kernel", "weights": "learn_weights_kernel", "events": "learn_events_kernel",
    "counts": "count_events_kernel",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One compilation: what launches it, the kernel's name, and the GPUs that it is compiled for."""

    name: str
    kernel: str
    launch: Callable[[], Any]
    architectures: tuple[int, ...] = (HOPPER,)


def launch_attention(
    part: str, width: int, position: bool, time: bool, in_order: bool = True, masks: bool = False,
    tile: Tile | None = None, dtype: torch.dtype = BF16, length: int = 9000,
) -> None:  # fmt: skip
    """One of attention's three kernels, as the ops launch it: 64 time buckets, two heads with separate biases, one long
    user, whose tensors Hopper's copy engine reads."""
    q, k, v, grad = (torch.zeros(length, 2, width, dtype=dtype) for _ in range(4))
    offsets, times, counts = torch.tensor([0, length]), torch.arange(length), torch.tensor([2]) if masks else None
    buckets = TimeBuckets.logarithmic(64) if time else None
    batch = triton_launch.prepare(
        offsets, length, buckets, times, times, counts, counts, BucketCache(in_order=in_order)
    )  # fmt: skip
    pos_bias = torch.zeros(2, 200) if position else None
    table = make_position_table(pos_bias) if pos_bias is not None else None
    time_bias = torch.zeros(2, 64) if time else None
    common = (q, k, v)
    if part == "forward":
        triton_launch.forward(*common, batch, 1.0, table, 200, time_bias, tile)
    elif part == "queries":
        triton_launch.backward_queries(
            *common, grad, batch, 1.0, table, pos_bias, time_bias, torch.empty_like(q), tile
        )  # fmt: skip
    else:
        outputs = torch.empty_like(k), torch.empty_like(v)
        triton_launch.backward_keys(*common, grad, batch, 1.0, table, 200, time_bias, *outputs, tile)


def _delta() -> None:
    arguments, _ = cases.delta_case([80, 90], [100, 100], qk=64, value=64)
    moved = {name: cases.move(value, "cpu", BF16) for name, value in arguments.items()}
    delta_attention(**moved, backend="triton")


def _softmax() -> None:
    query, table = (torch.zeros(n, 256, dtype=BF16).requires_grad_() for n in (100, 300))
    rows, log_q = torch.zeros(100, dtype=torch.int64), torch.zeros(100)
    loss = sampled_softmax(
        query, table, rows, rows[:96], log_q_target_R=log_q, log_q_negatives=log_q[:96], backend="triton"
    )
    torch.autograd.grad(loss.sum(), [query, table])


def _gate() -> None:
    tensors: list[Tensor] = [torch.zeros(100, 512, dtype=BF16) for _ in range(4)]
    weights = torch.zeros(512, dtype=BF16), torch.zeros(512, dtype=BF16)
    sums = layer.Sums(100, {"norm_out_weight": 512, "norm_out_bias": 512, "bias": 512}, tensors[0])
    layer.gate_gradient(tensors[0], tensors[1], *weights, tensors[2], tensors[3], 1e-6, sums, has_bias=True)


def _adagrad() -> None:
    rows, grad = torch.zeros(500, dtype=torch.int64), torch.zeros(500, 128)
    rowwise_adagrad_(torch.zeros(50, 128), torch.zeros(50), rows, grad, lr=0.1, backend="triton")


def launch_memory(num_events: int = 128, num_columns: int = 0) -> None:
    """A group of events, as the memory on a GPU launches it: 4,000 items of 256 neighbours."""
    from kernels.memory.device import DeviceMemory

    stream = Stream(num_rows=4000, num_users=4, num_events=num_events, num_columns=num_columns)
    arrays = MemoryArrays.empty(4096, 256, 8, num_columns, 64 * 2**num_columns, 1 << 16, NUM_HOURS)
    arrays.clock[0] = 1e6
    DeviceMemory(arrays, MemoryRules(), torch.device("cpu"), 128).learn(
        4000, stream.events(), torch.zeros(len(stream.events()), 4000)
    )


def variants() -> list[Variant]:
    """bfloat16 throughout."""

    def attention(name: str, part: str, width: int, *architectures: int, **how: bool) -> Variant:
        rab = how.pop("rab", True)
        launch = partial(launch_attention, part, width, rab, rab, **how)
        return Variant(name, KERNELS[part], launch, architectures or (HOPPER,))

    return [
        *(attention(f"{part} d128 rab", part, 128, HOPPER, AMPERE, BLACKWELL) for part in KERNELS),
        *(attention(f"{part} d64 rab", part, 64) for part in KERNELS),
        *(attention(f"{part} d128", part, 128, rab=False) for part in KERNELS),
        *(attention(f"{part} d64", part, 64, rab=False) for part in KERNELS),
        *(attention(f"{part} d128 rab any order", part, 128, in_order=False) for part in KERNELS),
        attention("forward d64 rab masks", "forward", 64, masks=True),
        Variant("delta d64 rab", "cache_forward_kernel", _delta),
        Variant("softmax forward d256", "shared_forward_kernel", _softmax),
        Variant("softmax queries d256", "shared_query_gradient_kernel", _softmax),
        Variant("gate gradient d512", "gate_gradient_kernel", _gate),
        *(Variant(f"memory {part}", kernel, partial(launch_memory, num_columns=2)) for part, kernel in MEMORY.items()),
        Variant("adagrad d128", "adagrad_kernel", _adagrad),
    ]
