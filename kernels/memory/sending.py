# mypy: allow-untyped-calls
"""The memory's events on their way to a GPU: all that its kernels read of them, in one copy."""

from __future__ import annotations

from ctypes import Structure, byref, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.compiled import baseline, pointers
from kernels.memory.events import MemoryEvents
from kernels.memory.past import VISIT_MS
from kernels.memory.triton_features import EVENT
from kernels.transfer import staged

_NAN_BITS = np.float32(np.nan).view(np.int32)
_TOLD = (
    "target_R", "chosen_R", "past_begin_R", "past_end_R", "met_begin_R", "met_end_R", "shown_begin_R", "shown_end_R",
    "past_ms", "now_ms_R",
)  # fmt: skip


class _SendCall(Structure):
    """``SentEvents`` of csrc/memory_send.cpp."""

    _fields_ = (
        *((name, c_int64) for name in ("num", "stride", "num_buckets", "visit_ms", "outcome_stride")),
        *((name, c_void_p) for name in (*_TOLD, "event", "outcome")),
    )


@dataclass(slots=True, eq=False)
class Sent:
    """Events on the device: (R, `EVENT`), the rows of pasts, of what was met, and of what was only shown, and items'
    groups."""

    event: Tensor
    past: Tensor
    met: Tensor
    shown: Tensor
    group: Tensor
    past_ms: Tensor
    now_ms: Tensor
    outcome_4R: Tensor
    """Three ranks of each event and the bits of its loss, as they are before it is predicted; then padding."""
    rank_3R: Tensor
    loss_R: Tensor


def send(events: MemoryEvents, num_columns: int, num_buckets: int, device: torch.device) -> Sent:
    """The events on the device. ``num_columns``: of groups; ``num_buckets``: of lengths of history."""
    event, outcome_4R = told_of(events, num_buckets)
    group_RC = np.zeros((len(events), num_columns), np.int32) if events.group_RC is None else events.group_RC
    parts: tuple[NDArray[Any], ...] = (
        event.reshape(-1), events.past_rows, events.met_rows, events.shown_rows, group_RC.reshape(-1),
        events.past_ms.view(np.int32), events.now_ms_R.view(np.int32), outcome_4R.reshape(-1),
    )  # fmt: skip
    padded = [_padded(len(each)) for each in parts]
    (joined, host), begin = staged(sum(padded), torch.int32, device), 0
    for part, length in zip(parts, padded, strict=True):
        joined[begin : begin + len(part)] = part
        begin += length
    there = host.to(device, non_blocking=True)
    sent, past, met, shown, group, past_ms, now_ms, outcome = there.split(padded)
    times = past_ms.view(torch.int64), now_ms.view(torch.int64)
    there_4R = outcome[: outcome_4R.size].view(outcome_4R.shape)
    return Sent(sent, past, met, shown, group, *times, there_4R, there_4R[:3], there_4R[3].view(torch.float32))


def told_of(events: MemoryEvents, num_buckets: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(R, `EVENT`) what kernels read of each event, and `Sent.outcome_4R`. ``num_buckets``: of lengths of history."""
    num = len(events)
    event = np.empty((num, EVENT.value), np.int32)
    outcome_4R = np.full((4, _padded(num)), _NAN_BITS)
    given = [np.ascontiguousarray(getattr(events, name)) for name in _TOLD]
    call = _SendCall(
        num, EVENT.value, num_buckets, VISIT_MS, outcome_4R.shape[1], *pointers(*given, event, outcome_4R)
    )  # fmt: skip
    baseline("headrace_memory_send", c_void_p)(byref(call))
    return event, outcome_4R


def _padded(num: int) -> int:
    """The next multiple of 32 numbers: so that each part is aligned and has an address."""
    return (num // 32 + 1) * 32
