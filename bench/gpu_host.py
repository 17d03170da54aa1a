# mypy: allow-untyped-calls
"""What the host does in a training step on a GPU, part by part, on a machine without one.

The trainer's own step with both passes in one CUDA graph and the memory on the GPU. What a GPU computes is left out:
the graph's outputs are zeros of the right shapes, and launches and copies do nothing. So this is the least that a step
takes, however fast the GPU is. Parts are processor time of the thread that launches, without the parts that they call;
"waiting" is how long it waited for the odds' own thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from bench.on_gpu.single_pass import GROUP, NUM_ITEMS, config_of, live_batches, prepare, synthetic_examples
from bench.timing import Row, one_thread, row
from kernels.beside import Beside
from model.config import ModelConfig
from trainer.examples.batch import build_batch
from trainer.examples.context import shorten

WARM, NUM_BEFORE, EVENTS_PER_S = 30, 200, 100_000.0
KERNELS = ("predict_events", "learn_weights", "learn_events", "count_events")


class Kernel:
    """A Triton kernel that computes nothing."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *_, **__: None


class Graphs:
    """`trainer.network.graph.Captures` of graphs that compute nothing."""

    works = True

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def learn(self, key: Any, _make: Any, arguments: Any, _device: torch.device) -> Any:
        """Zeros of the shapes that the graph's outputs and gradients have."""
        if key not in self._known:
            size, rows, width = key[0], arguments[0].num_rows, arguments[0].values.shape[1]
            shapes = [(), (), (), (size.users, width - 1), (rows, width - 1), (size.users, size.kinds)]
            varied = [(each.num_rows, *each.values.shape[1:]) for each in arguments if each.varies]
            self._known[key] = [torch.zeros(each) for each in shapes], [torch.zeros(each) for each in varied]
        return self._known[key]


class Parts:
    """Seconds spent in parts of a step, each without those within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._names, self._since = ["the rest"], 0.0

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, counted towards a part."""

        def run(*arguments: Any, **options: Any) -> Any:
            self._turn()
            self._names.append(name)
            try:
                return work(*arguments, **options)
            finally:
                self._turn()
                self._names.pop()

        return run

    def awaited(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, which waits for another thread; counted as long as that takes."""

        def run(*arguments: Any) -> Any:
            began_s, busy_s = time.perf_counter(), time.thread_time()
            try:
                return work(*arguments)
            finally:
                idle_s = time.perf_counter() - began_s - (time.thread_time() - busy_s)
                self.seconds["waiting"] = self.seconds.get("waiting", 0.0) + max(0.0, idle_s)

        return run

    def _turn(self) -> None:
        now = time.thread_time()
        self.seconds[self._names[-1]] = self.seconds.get(self._names[-1], 0.0) + now - self._since
        self._since = now

    def of(self, work: Callable[[], Any]) -> dict[str, float]:
        """The seconds of each part of one run."""
        self.seconds, self._since = {"waiting": 0.0}, time.thread_time()
        work()
        self._turn()
        return self.seconds


@contextmanager
def without_gpu() -> Iterator[None]:
    """Within the block, what a GPU would compute is not computed."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, TRITON_INTERPRET="1"))  # lets a memory on a GPU be made without one
        for name in KERNELS:
            stack.enter_context(patch(f"kernels.memory.device.{name}_kernel", Kernel()))
        for name in ("trainer.network.optim.adamw_", "model.row_store.rowwise_adagrad_"):
            stack.enter_context(patch(name, lambda *_, **__: None))
        stack.enter_context(
            patch("trainer.learner.memory_pass.MemoryPass._there", lambda *_: lambda _: torch.zeros(1, 1))
        )
        yield


def learner_of(parts: Parts) -> Any:
    """A learner that takes the paths of one on a GPU."""
    from trainer.learner.step import Learner
    from trainer.network.graph_step import PaddedStep

    config = config_of("cpu", 1, GROUP)
    learner = Learner(ModelConfig(), config, "cpu", threads=True)
    graphs: Any = Graphs()
    steps = PaddedStep(learner.model, graphs, feedback=config.late_feedback, context_gradient=config.context_gradient,
                       rank_weight=config.rank_weight)  # fmt: skip
    learner.forward_pass.step_graphs = steps
    for name, owner, method in (
        ("inputs of the graph", learner, "forward"), ("memory", learner.memory_pass, "launch"),
        ("odds", learner.scoring.ranking_pass, "begin"),
        *(("metrics", learner.scoring.evaluator, method) for method in ("ask", "count")),
        *(("vocabulary", table, method) for table in learner.tables.values() for method in ("lookup", "insert")),
    ):  # fmt: skip
        setattr(owner, method, parts.timed(name, getattr(owner, method)))
    return learner


def host_time(name: str, learner: Any, parts: Parts, batches: list[Any], goal_us: float | None) -> Iterator[Row]:
    """The time of a step, and of its parts. The first steps do not count."""
    runs, events, busy_s = list[dict[str, float]](), list[int](), 0.0
    with (
        patch("trainer.learner.step.build_batch", parts.timed("batch", build_batch)),
        patch("trainer.learner.step.shorten", parts.timed("batch", shorten)),
        patch.object(Beside, "wait", parts.awaited(Beside.wait)),
    ):
        for at, batch in enumerate(batches):
            busy_s = time.process_time() if at == WARM else busy_s
            runs.append(parts.of(partial(learner.step, batch)))
            events.append(sum(example.num_new for example in batch))
        busy_s = time.process_time() - busy_s
    runs, events = runs[WARM:], events[WARM:]
    targets, all_us = median(events), median(sum(each.values()) for each in runs) * 1e6
    rate = f"{targets / all_us * 1e6:,.0f} events/s; least {min(sum(each.values()) for each in runs) * 1e6:,.0f}"
    rate += f"; all threads {busy_s / len(runs) * 1e6:,.0f}, mean"
    yield row(f"{name}: host", all_us, "us a step", goal_us, f"{targets:.0f} targets, {rate}", most=True)
    for part in sorted(runs[0], key=lambda each: -median(run[each] for run in runs)):
        us = median(run[part] for run in runs) * 1e6
        yield row(f"  {part}", us, "us a step", note=f"{us / targets:.2f} us an event")


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    rows, num = list[Row](), 90 if quick else 160
    with without_gpu(), one_thread():
        for users in (32, 256):
            parts = Parts()
            learner = learner_of(parts)
            earlier, batches = live_batches(users, NUM_ITEMS, NUM_BEFORE, num)
            prepare(learner, earlier, NUM_ITEMS)
            name = f"{users} users, one new of each, {NUM_BEFORE} before it"
            rows += host_time(name, learner, parts, batches, 1500.0 if users == 32 else users / EVENTS_PER_S * 1e6)
        parts = Parts()
        examples = synthetic_examples(6040, NUM_ITEMS, 165, 32, 2000)
        batches = [list(islice(examples, 64)) for _ in range(num)]
        rows += host_time("single pass, MovieLens-sized", learner_of(parts), parts, batches, None)
    return rows
