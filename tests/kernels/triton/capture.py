"""CUDA graphs of `tests.kernels.triton.elsewhere`: a capture notes what the device is given, a replay does it again.

What a graph bakes in is baked in here too: addresses, sizes, numbers that the host computed. What CUDA refuses in a
capture is refused: waiting for the device, and copies from or to the host. All graphs of a pool share memory, so a
replay spoils what graphs captured later have left there; until its first replay, a graph's results are spoiled too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves


class Stream:
    """A `torch.cuda.Stream`; there is one queue of work, in which everything is done at once."""

    def wait_stream(self, _stream: Stream) -> None:
        """Nothing."""


@contextmanager
def on_stream(_stream: Stream | None) -> Iterator[None]:
    """`torch.cuda.stream`."""
    yield


class Captures:
    """All graphs, in the order of their captures, and the one that is being captured."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.now: Graph | None = None

    @contextmanager
    def capture(self, graph: Graph, pool: Any = None, **_: Any) -> Iterator[None]:
        """`torch.cuda.graph`."""
        assert self.now is None, "a capture within a capture"
        self.now, graph.pool = graph, pool
        self.graphs.append(graph)
        try:
            yield
        finally:
            self.now = None
        graph.spoil()


class Graph:
    """A `torch.cuda.CUDAGraph`."""

    def __init__(self, captures: Captures) -> None:
        self._all, self.pool = captures, None
        self._work: list[Callable[[], Any]] = []
        self._made: list[torch.Tensor] = []
        self.num_replays = 0

    def note(self, work: Callable[[], Any], results: Any = None, given: Sequence[torch.Tensor] = ()) -> None:
        """Note what was done; of its ``results``, those that are not within memory that it was ``given`` are new."""
        known = {each.untyped_storage().data_ptr() for each in given}
        new = [
            (place, each) for place, each in enumerate(tree_leaves(results))
            if isinstance(each, torch.Tensor) and each.numel() and each.untyped_storage().data_ptr() not in known
        ]  # fmt: skip
        self._made += [each for _, each in new]
        self._work.append(partial(_again, work, new))

    def replay(self) -> None:
        """Do it all again, on the same memory."""
        assert self._all.now is None, "a replay within a capture"
        for later in self._all.graphs[self._all.graphs.index(self) + 1 :]:
            if later.pool == self.pool:
                later.spoil()
        self.num_replays += 1
        with _disable_current_modes(), torch.no_grad():
            for work in self._work:
                work()

    def spoil(self) -> None:
        """Another graph has used the memory."""
        with _disable_current_modes():
            for each in self._made:
                if each.is_floating_point():
                    each.fill_(float("nan"))


def _again(work: Callable[[], Any], new: list[tuple[int, torch.Tensor]]) -> None:
    results = tree_leaves(work())
    for place, memory in new:
        memory.copy_(results[place])
