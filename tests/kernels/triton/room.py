"""The memory of `tests.kernels.triton.elsewhere`, given out as PyTorch's allocator does.

What a tensor leaves is given to the next one of its stream at once, whatever other streams have yet to do with it:
unless `torch.Tensor.record_stream` names them. What is made in a capture lies in its graph's pool.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from tests.kernels.triton.queues import Event, Queues, Stream

LEAST_BYTES = 512


class Held:
    """Memory that tensors have: once the last of them is gone, another one may get it."""

    def __init__(self, room: Room, memory: torch.Tensor, home: Any) -> None:
        self._room, self._memory, self._home = room, memory, home
        self._users: list[Stream] = []

    def used_by(self, stream: Stream) -> None:
        """`torch.Tensor.record_stream`."""
        self._users.append(stream)

    def __del__(self) -> None:
        self._room.put_back(self._memory, self._home, [each.record_event() for each in self._users])


class Room:
    """Memory by stream or pool, and by size."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._free: dict[Any, list[torch.Tensor]] = defaultdict(list)
        self._used: list[tuple[torch.Tensor, Any, list[Event]]] = []
        self.num_reused = 0

    def take(self, like: torch.Tensor, pool: Any) -> tuple[torch.Tensor, Held]:
        """A tensor with the shape of ``like``, and its memory's holder; it has what the memory had before. Memory that
        nobody had before is full of ones: NaN or -1."""
        self._look_for_unused()
        length = sum((n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True)) + 1
        num_bytes = max(LEAST_BYTES, 1 << (length * like.element_size() - 1).bit_length())
        home = (pool or self._queues.current, num_bytes)
        if self._free[home]:
            memory = self._free[home].pop()
            self.num_reused += 1
        else:
            memory = torch.full((num_bytes,), 255, dtype=torch.uint8)
        return memory.view(like.dtype).as_strided(like.shape, like.stride()), Held(self, memory, home)

    def put_back(self, memory: torch.Tensor, home: Any, events: list[Event]) -> None:
        """Take memory back; it is given out again once the events are done."""
        if events:
            self._used.append((memory, home, events))
        else:
            self._free[home].append(memory)

    def _look_for_unused(self) -> None:
        used, self._used = self._used, []
        for each in used:
            memory, home, events = each
            if all(event.query() for event in events):
                self._free[home].append(memory)
            else:
                self._used.append(each)
