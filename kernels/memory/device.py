# mypy: allow-untyped-calls
"""The memory on a GPU: its arrays as tensors, and groups of events that are predicted, learned and counted there.

The host's arrays stay what everything else reads: `DeviceMemory.fetch` copies the rows that have changed since. A step
sends its events in one copy, launches four kernels a group and asks for the outcomes in one copy, without waiting for
any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory.arrays import CHANGED, MemoryArrays, has_few_repeats
from kernels.memory.events import MemoryEvents, MemoryOutcome, MemoryRules
from kernels.memory.reference import group_size
from kernels.memory.sending import Sent, send
from kernels.memory.triton_features import ENTRIES, EVENT, FOLLOWERS, GATHERED, LIST, OWN_COLUMNS, SLOPES
from kernels.memory.triton_groups import NOTES, Groups
from kernels.memory.triton_learn import NUM_PROGRAMS, learn_events_kernel
from kernels.memory.triton_neighbours import count_events_kernel, learn_weights_kernel
from kernels.memory.triton_pairs import PER_EVENT, Pairs
from kernels.memory.triton_predict import predict_events_kernel
from kernels.transfer import ToHost, to_device
from kernels.triton_shared import INTERPRETED, next_power

FEW, MOST_GROUP = 16 if INTERPRETED else 32, 128
"""Kernels are compiled for groups of up to `FEW` events and of up to `MOST_GROUP`: a version for each size would be
compiled in the middle of a stream."""
SCRATCH_BYTES = 1 << 29
"""The most scratch memory for one launch's events, each of which needs features of all rows; larger groups take several
launches."""
SCRATCH_COLUMNS = GATHERED.value + OWN_COLUMNS.value + 1
"""Numbers of scratch memory for each event and row."""
BLOCK = 64 if INTERPRETED else 1024
_EXCLUDE = {"never": 0, "always": 1, "auto": 2}
_ROWS = (
    "neighbour_row", "num_neighbours", "after", "before", "direct", "weight", "seen", "hour", "first", "last", "moved",
)  # fmt: skip
_SLOTS = ("pair_row", "pair_next", "pair_count", "pair_moved")
_WHOLE = ("gain", "gain_square", "shortlist_weight", "shortlist_square", "shortlist_norm", "clock", "recent")
_COUNTED = ("group_seen", "group_next", "group_count", "group_total", "group_share")
"""What is counted of groups."""


class DeviceMemory:
    """A copy of ``memory``, which counts pairs and times of day, on ``device``, without the keys of groups. At most
    ``group`` events are predicted from the same state."""

    def __init__(self, memory: MemoryArrays, rules: MemoryRules, device: torch.device, group: int) -> None:
        if not 1 <= group <= MOST_GROUP:
            raise ValueError(f"group: expected 1 to {MOST_GROUP} events, got {group}")
        if not memory.num_pairs or not memory.num_hours:
            raise ValueError(
                f"memory: expected one that counts pairs and times of day, got {memory.num_pairs} slots of pairs and "
                f"{memory.num_hours} parts of the day"
            )
        self._device, self._group = device, group
        self._arrays = {
            each.name: _copy(getattr(memory, each.name), device) for each in fields(memory) if each.name != "group_key"
        }
        self._clear_changed()
        self._arrays["hourly"], self._is_hourly = torch.zeros(memory.capacity, device=device), False
        self._capacity, self._width, self._num_parts = memory.capacity, memory.width, memory.num_buckets + 1
        self._num_columns, self._num_groups, self._num_pairs = memory.num_columns, memory.num_groups, memory.num_pairs
        self._num_events = int(memory.clock[0])
        self._exclude = _EXCLUDE[rules.exclude]
        self._weight_rate = rules.weight_rate
        self.leaves_out_repeats = memory.leaves_out_repeats
        """As of the last outcome that was waited for."""
        rates = [rules.gain_rate, rules.gain_decay, rules.shortlist_rate, rules.shortlist_decay]
        fades = [1.0 / each for each in (rules.seen_half_life, *rules.heat_half_lives)]
        self._rules = to_device(np.array([*rates, *fades, -1.0 / rules.repeat_half_life]), device)
        self._scratch: dict[str, Tensor] = {}
        self._pairs = self._pairs_of()
        self._is_ahead = False

    def learn(self, num_rows: int, events: MemoryEvents, logit_AV: Tensor) -> DeviceOutcome:
        """See `kernels.memory.reference.memory_learn_grouped`; does not wait for the device.

        ``logit_AV``: float32 on the device, a row for each event to predict (1 in ``events.chosen_R``).
        """
        num, sent = len(events), send(events, self._num_columns, self._num_parts - 1, self._device)
        if num:
            known = np.concatenate([np.zeros(1, np.int64), np.cumsum(events.target_R > 0)])
            start, groups = 0, self._groups(sent)
            if not self._is_hourly:  # from the counts, as after each group, so that what is resumed has the same bits
                self._count_group(num_rows, sent, groups, 0, 0)
                self._is_hourly = True
            while start < num:
                size = min(group_size(self._num_events + int(known[start]), self._group), num - start)
                self._learn_group(num_rows, sent, groups, logit_AV, start, size)
                start += size
            self._num_events += int(known[-1])
            self._is_ahead = True
        clock = self._arrays["clock"].clone().view(torch.int32)  # which the next events change
        return DeviceOutcome(num, ToHost(sent.outcome_4R, clock), self)

    def _learn_group(
        self, num_rows: int, sent: Sent, groups: Groups | None, logit_AV: Tensor, start: int, size: int
    ) -> None:
        a, s = self._arrays, self._buffers()
        width, stride = self._width, self._capacity
        most = next_power(width)
        pairs, num_columns, num_groups, num_pairs = self._pairs, self._num_columns, self._num_groups, self._num_pairs
        together = self._together(size)
        for place in range(0, size, together):
            predict_events_kernel[(min(together, size - place),)](
                sent.event, sent.past, sent.met, sent.shown, sent.past_ms, sent.now_ms, logit_AV,
                a["neighbour_row"], a["num_neighbours"], a["after"], a["before"], a["direct"], a["weight"], a["seen"],
                a["heat"], a["first"], a["last"], a["hourly"], a["gain"], a["shortlist_weight"], a["shortlist_norm"],
                a["clock"],
                s["evidence"], s["own"], s["score"], s["push"], s["slope"], s["list"], s["shortlist_slope"],
                s["moment"], s["told"], s["rate"], s["learning"], s["counting"], s["sight"], sent.rank_3R,
                sent.loss_R,
                pairs, groups, start + place, place, num_rows, width, stride, logit_AV.stride(0),
                sent.rank_3R.stride(0), num_columns, num_groups, num_pairs, EXCLUDE=self._exclude, GROUP=MOST_GROUP,
                WIDTH=most, BLOCK=BLOCK, num_warps=16,
            )  # fmt: skip
        padded = FEW if size <= FEW else MOST_GROUP
        table = ENTRIES.value * padded
        learn_weights_kernel[(size * ENTRIES.value,)](
            s["learning"], s["rate"], s["push"], a["neighbour_row"], a["num_neighbours"], a["weight"], a["dirty"],
            self._weight_rate, size, width, stride, WIDTH=most, TABLE=table, num_warps=8,
        )  # fmt: skip
        learn_events_kernel[(NUM_PROGRAMS + num_columns,)](
            sent.event, sent.past, sent.now_ms, s["slope"], s["shortlist_slope"], s["moment"], s["told"], s["unit"],
            a["after"], a["before"], a["direct"], a["seen"], a["hour"], a["heat"], a["first"], a["last"],
            a["gain"], a["gain_square"], a["shortlist_weight"], a["shortlist_square"], a["shortlist_norm"], a["clock"],
            a["dirty"], a["moved"], a["recent"], self._rules, pairs, groups, start, size, num_rows, width, stride,
            self._num_parts, num_columns, num_groups, num_pairs, PARTS=next_power(self._num_parts), GROUP=padded,
            BLOCK=1024, num_warps=8,
        )  # fmt: skip
        self._count_group(num_rows, sent, groups, start, size)

    def _count_group(self, num_rows: int, sent: Sent, groups: Groups | None, start: int, size: int) -> None:
        """Count these events, of which there may be none, and compute all rows' times of day as of the last of them."""
        a, s = self._arrays, self._buffers()
        table = ENTRIES.value * (FEW if (size or self._group) <= FEW else MOST_GROUP)
        num_tasks = size * (ENTRIES.value + PER_EVENT.value + self._num_columns) + -(-num_rows // BLOCK)
        count_events_kernel[(num_tasks,)](
            sent.event[EVENT.value * start :], sent.past, s["counting"], s["unit"], a["neighbour_row"],
            a["num_neighbours"], a["after"], a["before"], a["direct"], a["weight"], a["hour"], a["hourly"], a["dirty"],
            a["moved"], a["clock"], self._pairs, groups, size, num_rows, self._width, self._num_groups,
            WIDTH=next_power(self._width), TABLE=table, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip

    @property
    def _num_lifts(self) -> int:
        """Numbers of scratch memory for an event's lifts of rows and groups."""
        return self._capacity + self._num_columns * self._num_groups if self._num_columns else 0

    def _together(self, size: int) -> int:
        """Of how many events of a group there is scratch memory."""
        per_event: int = SCRATCH_COLUMNS * self._capacity + self._num_lifts
        return max(1, min(size, SCRATCH_BYTES // (4 * per_event)))

    def _pairs_of(self) -> Pairs:
        a, s = self._arrays, self._buffers()
        row, following, count, moved = (a[name] for name in _SLOTS)
        return Pairs(row, following, count, a["pair_dirty"], moved, s["slot"], s["value"])

    def _groups(self, sent: Sent) -> Groups | None:
        if not self._num_columns:
            return None
        a, s = self._arrays, self._buffers()
        seen, following, count, total, share = (a[name] for name in _COUNTED)
        return Groups(
            a["group"], seen, following, count, total, share, sent.group, s["lift"], s["part"], s["pair"]
        )  # fmt: skip

    def _buffers(self) -> dict[str, Tensor]:
        """Scratch memory, made once."""
        if not self._scratch:
            group, stride = self._group, self._capacity
            together = self._together(group)
            sizes: dict[str, tuple[int, torch.dtype]] = {
                "evidence": (together * GATHERED.value * stride, torch.float32),
                "own": (together * OWN_COLUMNS.value * stride, torch.int32),
                "score": (together * stride, torch.float32),
                "push": (group * stride, torch.float32),
                "slope": (group * 32, torch.float32),
                "list": (together * LIST.value, torch.int32),
                "shortlist_slope": (group * SLOPES.value, torch.float32),
                "sight": (together * LIST.value * 32, torch.float32),
                "moment": (group * 64, torch.float32),
                "told": (group * 4, torch.int32),
                "rate": (group, torch.float32),
                "unit": (group, torch.float32),
                "learning": (group * ENTRIES.value, torch.int32),
                "counting": (group * ENTRIES.value, torch.int32),
                "lift": (together * self._num_lifts, torch.float32),
                "part": (group * self._num_columns * NOTES.value, torch.float32),
                "pair": (MOST_GROUP * self._num_columns * 2, torch.int32),
                "slot": (group * PER_EVENT.value, torch.int32),
                "value": (together * FOLLOWERS.value, torch.float32),
            }
            self._scratch = {
                name: torch.zeros(n, dtype=dtype, device=self._device) for name, (n, dtype) in sizes.items()
            }
        return self._scratch

    def fetch(self, memory: MemoryArrays) -> None:
        """Copy what has changed on the device since the last call into the host's arrays, from which this was made."""
        if not self._is_ahead:
            return
        rows, index = self._fetch_changed(memory, _ROWS, "dirty", "moved")
        self._fetch_changed(memory, _SLOTS, "pair_dirty", "pair_moved")
        memory.heat[:, index] = self._arrays["heat"][:, rows].cpu().numpy()
        if self._num_columns:
            memory.group[index] = self._arrays["group"][rows].cpu().numpy()
        for name in (*_WHOLE, *(_COUNTED if self._num_columns else ())):
            getattr(memory, name)[...] = self._arrays[name].cpu().numpy()
        self._clear_changed()
        self._is_ahead = False

    def _fetch_changed(
        self, memory: MemoryArrays, names: tuple[str, ...], dirty: str, moved: str
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Copy the rows that are marked as changed, and mark them on the host too; which ones they are."""
        rows = torch.nonzero(self._arrays[dirty]).flatten()
        index = rows.cpu().numpy()
        was_moved = getattr(memory, moved)[index]
        for name in names:
            getattr(memory, name)[index] = self._arrays[name][rows].cpu().numpy()
        getattr(memory, moved)[index] |= was_moved
        getattr(memory, dirty)[index] = CHANGED
        return rows, index

    def _clear_changed(self) -> None:
        """From here on: what has changed on the device."""
        for name in ("dirty", "moved", "pair_dirty", "pair_moved"):
            self._arrays[name].zero_()


@dataclass(frozen=True, slots=True, eq=False)
class DeviceOutcome:
    """A `MemoryOutcome` on its way from the device."""

    num: int
    outcome_4R: ToHost
    """And the clock."""
    memory: DeviceMemory

    def wait(self) -> MemoryOutcome:
        """The outcome on the host."""
        outcome_4R, clock = self.outcome_4R.wait()
        self.memory.leaves_out_repeats = has_few_repeats(clock.view(np.float64))
        rank_R, model_rank_R, count_rank_R, loss_R = outcome_4R[:, : self.num]
        return MemoryOutcome(rank_R, model_rank_R, count_rank_R, loss_R.view(np.float32))


def _copy(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, copy=True)
