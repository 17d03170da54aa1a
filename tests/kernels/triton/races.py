"""What a device could do otherwise than Triton's interpreter, which runs a program's operations and all programs in
turn: races, and addresses that no argument has.

Inside `checked` each launch notes who reads and writes which address. An element of a tile belongs to some thread, the
same one in every operation on tiles of one shape; a tile with fewer elements than threads has each of them in several
threads, of which one stores it. Between two barriers (`tl.debug_barrier`), what one thread writes no other one may read
or write; between launches, what one program writes no other program may. Writing what is there already, and atomic
operations among themselves, are no races.

Barriers that the compiler puts into reductions and products are not counted: it owes none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

KERNELS = str(Path(__file__).resolve().parents[3] / "kernels")
LEAST_WARPS = 4
SEVERAL = -1


class Launch:
    """One launch: ``found`` has what is wrong, each by the two lines of our kernels."""

    def __init__(self, tensors: list[torch.Tensor], num_threads: int, found: set[str]) -> None:
        self._num_threads, self._found = num_threads, found
        spans = sorted((each.untyped_storage().data_ptr(), each.untyped_storage().nbytes()) for each in tensors)
        self._starts = np.array([start for start, _ in spans], np.uint64)
        self._ends = np.array([start + num for start, num in spans], np.uint64)
        self._writers: dict[int, tuple[int, str, bool]] = {}
        self._readers: dict[int, tuple[int, str]] = {}
        self._program = 0
        self._begin()

    def next_program(self) -> None:
        """What follows is another program's."""
        self._program += 1
        self._begin()

    def wait(self) -> None:
        """Threads have waited for each other."""
        self._begin()

    def _begin(self) -> None:
        self._written: dict[int, tuple[Any, str, bool]] = {}
        self._read: dict[int, tuple[Any, str]] = {}

    def load(self, pointers: Any, mask: Any) -> None:
        """A read."""
        line, shape, addresses, places = self._parts("read", pointers, mask)
        is_shared = pointers.size < self._num_threads
        for address, place in zip(addresses, places, strict=True):
            thread = shape, place
            if (written := self._written.get(address)) and (is_shared or written[0] != thread):
                self._tell("written and read in one stretch", written[1], line)
            if (writer := self._writers.get(address)) and writer[0] != self._program:
                self._tell("written by a program and read by another", writer[1], line)
            before = self._read.get(address)
            if before is None or before[0] != thread:
                self._read[address] = thread if before is None else SEVERAL, line
            reader = self._readers.get(address)
            if reader is None or reader[0] != self._program:
                self._readers[address] = (self._program if reader is None else SEVERAL), line

    def store(self, pointers: Any, mask: Any, values: Any, *, is_atomic: bool = False) -> None:
        """A write of ``values``, or a change of what is there."""
        line, shape, addresses, places = self._parts("written", pointers, mask)
        given = np.broadcast_to(values, pointers.shape)[mask].tolist()
        for address, place, value in zip(addresses, places, given, strict=True):
            thread = shape, place
            is_same = is_atomic, value
            written = self._written.get(address)
            if written and written[0] != thread and not self._is_harmless(written[2], is_same):
                self._tell("written twice in one stretch", written[1], line)
            if (read := self._read.get(address)) and read[0] != thread:
                self._tell("read and written in one stretch", read[1], line)
            writer = self._writers.get(address)
            if writer and writer[0] != self._program and not self._is_harmless(writer[2], is_same):
                self._tell("written by two programs", writer[1], line)
            if (reader := self._readers.get(address)) and reader[0] != self._program:
                self._tell("read by a program and written by another", reader[1], line)
            self._written[address] = thread, line, is_same
            self._writers[address] = self._program, line, is_same

    @staticmethod
    def _is_harmless(before: Any, now: Any) -> bool:
        """Two atomic changes of integers, or the same value twice."""
        both_atomic = before[0] and now[0]
        return both_atomic and isinstance(now[1], int) if before[0] or now[0] else before[1] == now[1]

    def _parts(self, what: str, pointers: Any, mask: Any) -> tuple[str, Any, list[int], list[int]]:
        line, chosen = _line(), pointers[mask]
        if len(chosen):
            place = np.searchsorted(self._starts, chosen, side="right") - 1
            if (place < 0).any() or (chosen >= self._ends[place]).any():
                self._tell(f"{what} outside of all arguments", line, line)
        return line, pointers.shape, chosen.tolist(), np.flatnonzero(mask).tolist()

    def _tell(self, what: str, first: str, second: str) -> None:
        self._found.add(f"{what}: {first}, {second}")


def _line() -> str:
    """The innermost line of our kernels."""
    frame: Any = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(KERNELS):
        frame = frame.f_back
    return "?" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


@contextmanager
def checked() -> Iterator[set[str]]:
    """Inside the block all launches are checked; yields what is wrong."""
    found, now = set[str](), list[Launch]()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    call, hosted = executor.__call__, executor._init_args_hst
    load, store, change = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw
    step, wait = builder.set_grid_idx, builder.create_barrier
    threads = list[int]()

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        threads.append(32 * kwargs.get("num_warps", LEAST_WARPS))
        try:
            return call(self, *args, **kwargs)
        finally:
            threads.pop()
            now.clear()

    def on_host(self: Any, args: Any, kwargs: Any) -> Any:
        result = hosted(self, args, kwargs)
        leaves = [getattr(each, "base", each) for each in tree_leaves(result)]
        tensors = [each for each in map(_plain, leaves) if isinstance(each, torch.Tensor)]
        now.append(Launch(tensors, threads[-1], found))
        return result

    def at(self: Any, *where: Any) -> Any:
        now[-1].next_program()
        return step(self, *where)

    def loads(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        now[-1].load(ptrs.data, mask.data)
        return load(self, ptrs, mask, *rest)

    def stores(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        now[-1].store(ptrs.data, mask.data, value.data)
        return store(self, ptrs, value, mask, *rest)

    def changes(self: Any, op: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
        now[-1].store(ptr.data, mask.data, value.data, is_atomic=True)
        return change(self, op, ptr, value, mask, *rest)

    def waits(self: Any, *args: Any) -> Any:
        now[-1].wait()
        return wait(self, *args)

    with (
        mock.patch.multiple(executor, __call__=launch, _init_args_hst=on_host),
        mock.patch.multiple(
            builder, set_grid_idx=at, create_masked_load=loads, create_masked_store=stores, create_atomic_rmw=changes,
            create_barrier=waits,
        ),
    ):  # fmt: skip
        yield found


def _plain(value: Any) -> Any:
    """A tensor within one of Triton's wrappers."""
    return value.base if hasattr(value, "base") and isinstance(value.base, torch.Tensor) else value
