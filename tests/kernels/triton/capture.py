"""CUDA graphs of `tests.kernels.triton.elsewhere`: a capture notes what the device is given, a replay does it.

What a graph bakes in is baked in here too: addresses, sizes, numbers that the host computed. What CUDA refuses in a
capture is refused: waiting for the device, and copies from or to the host. All graphs of a pool share memory, so a
replay spoils what graphs captured later have left there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tests.kernels.triton.queues import Queues


class Captures:
    """All graphs, in the order of their captures, and the one that is being captured."""

    def __init__(self, queues: Queues) -> None:
        self.queues = queues
        self.graphs: list[Graph] = []
        self.now: Graph | None = None

    @contextmanager
    def capture(self, graph: Graph, pool: Any = None, **_: Any) -> Iterator[None]:
        """`torch.cuda.graph`."""
        assert self.now is None, "a capture within a capture"
        self.queues.synchronize()  # as PyTorch does
        self.now, graph.pool = graph, pool or graph
        self.graphs.append(graph)
        try:
            yield
        finally:
            self.now = None


class Graph:
    """A `torch.cuda.CUDAGraph`."""

    def __init__(self, captures: Captures) -> None:
        self._all, self.pool = captures, None
        self._work: list[Callable[[], Any]] = []
        self._made: list[torch.Tensor] = []
        self.num_replays = 0

    def note(self, work: Callable[[], Any], made: Sequence[torch.Tensor] = ()) -> None:
        """Note what is to be done, and the memory that it got for its results."""
        self._made += made
        self._work.append(work)

    def replay(self) -> None:
        """Do it all, on the same memory."""
        assert self._all.now is None, "a replay within a capture"
        graphs = self._all.graphs
        later = [each for each in graphs[graphs.index(self) + 1 :] if each.pool == self.pool]

        def again() -> None:
            for graph in later:
                graph.spoil()
            for work in self._work:
                work()

        self.num_replays += 1
        self._all.queues.give(again)

    def spoil(self) -> None:
        """Another graph has used the memory."""
        for each in self._made:
            if each.is_floating_point():
                each.fill_(float("nan"))
