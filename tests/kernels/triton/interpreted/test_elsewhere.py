"""A trainer's step as on a GPU: it learns what one on the CPU learns, and the host waits for its results alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count, islice
from typing import Any

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run in a process of its own by test_interpreter.py", allow_module_level=True)

from bench.gpu_pass import synthetic_examples
from model.config import ModelConfig
from model.memory import Memory
from tests.kernels.triton.elsewhere import Elsewhere, elsewhere
from tests.kernels.triton.interpreted.test_padding import with_domains
from trainer import graph, graph_step
from trainer.config import TrainerConfig
from trainer.graph import Captures
from trainer.graph_step import PaddedStep
from trainer.snapshot import learner_arrays
from trainer.step import Learner

MODEL = ModelConfig(num_layers=2, model_width=16, num_heads=1, qk_width=16, value_width=16, item_width=16,
                    num_positions=32, num_time_buckets=8, max_context=8, memory_neighbours=8)  # fmt: skip


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("LEAST_INTERACTIONS", 16), ("LEAST_USERS", 4), ("LEAST_ROWS", 80)):
        monkeypatch.setattr(graph_step, name, size)


def learner_on(
    device: str, group: int = 1, *, graphed: bool = False, one_graph: bool = False, most: int = 100
) -> Learner:
    config = TrainerConfig(
        device="cpu", exclude_seen=False, memory_group=group, graph_gradients=one_graph, full_softmax_max_items=most,
        num_negatives=8,
    )  # fmt: skip
    learner = Learner(MODEL, config, device)
    if graphed:
        learner.forward_pass.step_graphs = PaddedStep(
            learner.model, Captures(wanted=False), feedback=config.late_feedback,
            context_gradient=config.context_gradient, rank_weight=config.rank_weight,
        )  # fmt: skip
    return learner


def losses(learner: Learner, waits: list[str] | None = None) -> list[float]:
    """The losses of two steps with domains. ``waits``: cleared after the first, which sends what is sent once."""
    found, examples = list[float](), map(with_domains, synthetic_examples(5, 30, 8, 3, 12))
    for step in range(2):
        report = learner.step(list(islice(examples, 4)))
        found += [report.retrieval_loss, report.ranking_loss]
        if waits is not None and step == 0:
            waits.clear()
    return found


def without_moves(gpu: Elsewhere) -> Callable[..., Any]:
    """`trainer.graph._gradients`, which is captured: nothing in it may come from the host, or go there."""
    plain, calls = graph._gradients, count()

    def checked(*arguments: Any) -> Any:
        gpu.moves.clear()
        found = plain(*arguments)
        assert next(calls) == 0 or not gpu.moves, gpu.moves  # the first call is not captured
        return found

    return checked


@pytest.mark.parametrize(
    "way",
    [{"graphed": True, "one_graph": True}, {"most": 5}],
    ids=["one graph", "launches, sampled loss"],
)
def test_a_step_on_a_gpu_waits_for_nothing_but_its_results(
    way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    expected = losses(learner_on("cpu", most=way.get("most", 100)))
    with elsewhere() as gpu:
        monkeypatch.setattr(graph, "_gradients", without_moves(gpu))
        learner = learner_on("cuda:0", 8, **way)
        assert losses(learner, gpu.waits) == pytest.approx(expected, rel=1e-4)
        assert gpu.waits == []
        saved = learner_arrays(learner)
    assert (saved["memory.after"] > 0).any()


def test_with_the_memory_on_the_host_a_step_waits_for_the_network_s_logits() -> None:
    expected = losses(learner_on("cpu"))
    with elsewhere() as gpu:
        learner = learner_on("cuda:0")
        assert losses(learner, gpu.waits) == pytest.approx(expected, rel=1e-4)
        assert [each.split(":")[0] for each in gpu.waits] == ["_to_copy from the GPU at memory_pass.py"]


def test_a_build_that_fetches_the_memory_in_every_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    grow = Memory.grow

    def fetches_first(memory: Memory, num_rows: int) -> None:
        assert memory.arrays is not None
        grow(memory, num_rows)

    monkeypatch.setattr(Memory, "grow", fetches_first)
    with elsewhere() as gpu:
        losses(learner_on("cuda:0", 8, graphed=True, one_graph=True), gpu.waits)
        assert "nonzero at memory.py" in [each.split(":")[0] for each in gpu.waits]


def test_what_would_wait_is_seen() -> None:
    with elsewhere() as gpu:
        x = torch.zeros(4, device="cuda:0")
        for waits in (
            x.cpu, lambda: float(x[0]), x.nonzero, lambda: x[x > 0],
            lambda: torch.ones(3).to("cuda:0"), lambda: x[torch.tensor([1])],
        ):  # fmt: skip
            gpu.waits.clear()
            waits()
            assert len(gpu.waits) == 1
        with pytest.raises(AssertionError, match="some on the host"):
            _ = x + torch.ones(4)
        with pytest.raises((TypeError, RuntimeError)):
            x.numpy()
    assert np.array_equal(x.here, np.zeros(4))  # type: ignore[attr-defined]
