"""The trainer's step on the GPU: the same losses as on the CPU, step after step."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from bench.on_gpu.single_pass import synthetic_examples
from kernels import build
from wire.example import Example, rows_of


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    """Compile the C++ kernels, which the id map needs: a GPU machine without our environment does not have them."""
    if not build.LIBRARY_PATH.exists():
        subprocess.run([sys.executable, "-m", "kernels.build"], check=True)


@pytest.mark.parametrize("full_softmax_max_items", [10_000, 10], ids=["full softmax", "sampled softmax"])
def test_a_trainer_on_the_gpu_learns_what_one_on_the_cpu_learns(full_softmax_max_items: int) -> None:
    from model.config import ModelConfig
    from trainer.config import TrainerConfig
    from trainer.learner.step import Learner

    losses = {}
    for device in ("cpu", "cuda"):
        # Products in float32, whatever another test has set: `trainer.device` sets TF32.
        torch.set_float32_matmul_precision("highest")
        config = TrainerConfig(
            device=device, exclude_seen=True, full_softmax_max_items=full_softmax_max_items, num_negatives=64
        )
        learner = Learner(ModelConfig(), config, device)
        examples = synthetic_examples(40, 300, 60, 16, 200)
        losses[device] = []
        while batch := list(islice(examples, 16)):
            report = learner.step(batch)
            losses[device].append((report.retrieval_loss, report.ranking_loss))
    assert len(losses["cpu"]) > 5
    for ours, theirs in zip(losses["cuda"], losses["cpu"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)


@pytest.mark.parametrize("block", ["hstu", "fuxi"])
def test_a_trainer_that_replays_graphs_learns_what_one_without_learns(block: str) -> None:
    """Also where its tables and its memory have grown, and lost items, since the capture."""
    from model.config import ModelConfig
    from trainer.config import TrainerConfig
    from trainer.learner.step import Learner

    torch.set_float32_matmul_precision("highest")
    losses = {}
    for graphs, gradients in ((False, False), (True, False), (True, True)):
        config = TrainerConfig(
            device="cuda", exclude_seen=True, cuda_graphs=graphs, graph_gradients=gradients, max_items=150,
            evict_every_steps=7,
        )  # fmt: skip
        learner = Learner(ModelConfig(block=block), config, "cuda")
        examples = synthetic_examples(40, 300, 60, 16, 200)
        losses[graphs, gradients] = []
        while batch := list(islice(examples, 16)):
            report = learner.step(batch)
            losses[graphs, gradients].append((report.retrieval_loss, report.ranking_loss))
        captured = learner.forward_pass.step_graphs
        assert captured is None or captured.works, "a capture failed; see its warning"
    for gradients in (False, True):
        for ours, theirs in zip(losses[True, gradients], losses[False, False], strict=True):
            # Sums over padded tiles differ in their last bits, and what was learned from them more with every step.
            assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("way", [{}, {"cuda_graphs": True, "graph_gradients": True}], ids=["launches", "one graph"])
def test_a_trainer_repeats_to_the_bit(way: dict[str, bool]) -> None:
    """Also where an item occurs several times, and with the memory on the GPU."""
    from model.config import ModelConfig
    from trainer.checkpoint.snapshot import learner_arrays
    from trainer.config import TrainerConfig
    from trainer.learner.step import Learner

    found = []
    for _ in range(2):
        config = TrainerConfig(device="cuda", exclude_seen=True, memory_group=32, **way)
        learner = Learner(ModelConfig(), config, "cuda")
        examples = synthetic_examples(40, 300, 60, 16, 200)
        while batch := list(islice(examples, 16)):
            learner.step(batch)
        found.append(learner_arrays(learner))
    for name in ("items.weight", "items.state", "memory.after", "memory.weight", "optimiser.flat"):
        np.testing.assert_array_equal(found[0][name], found[1][name], err_msg=name)


def test_a_memory_on_the_gpu_learns_what_its_definition_learns() -> None:
    from kernels.memory import MemoryEvents, MemoryOutcome, MemoryRules, reference
    from kernels.memory.device import DeviceOutcome
    from model.config import ModelConfig
    from trainer.config import TrainerConfig
    from trainer.learner.step import Learner

    config = TrainerConfig(device="cuda", memory_group=8)
    learner = Learner(ModelConfig(memory_neighbours=24, num_features=2), config, "cuda")
    memory, there = learner.memory, learner.memory.learn_together
    rules = MemoryRules(seen_half_life=config.memory_half_life, exclude=str(config.exclude_seen))
    definition, compared = memory.arrays.copy(), list[tuple[MemoryOutcome, MemoryOutcome]]()

    def both(events: MemoryEvents, logit_AV: torch.Tensor) -> DeviceOutcome:
        logits = logit_AV.cpu().numpy()
        expected = reference.memory_learn_grouped(definition, memory.num_rows, events, logits, rules, 8)
        found = there(events, logit_AV)
        compared.append((found.wait(), expected))
        return found

    def with_features(example: Example) -> Example:
        rows = example.interactions
        feature = 1 + np.stack([rows.item_hash % 3, rows.item_hash % 50], axis=1)
        return replace(example, rows=rows_of(replace(rows, feature_hash=feature)))

    memory.learn_together = both  # type: ignore[method-assign]
    examples = map(with_features, synthetic_examples(30, 200, 40, 8, 60))
    while batch := list(islice(examples, 16)):
        learner.step(batch)
    assert sum(len(ours.rank_R) for ours, _ in compared) > 500
    for ours, theirs in compared:
        # Scores that are almost equal may change places: float32 here, float64 in the definition.
        assert np.abs(ours.rank_R - theirs.rank_R).max() <= 2
        np.testing.assert_allclose(ours.loss_R, theirs.loss_R, rtol=5e-3, atol=5e-3)
    fetched = memory.arrays
    np.testing.assert_array_equal(fetched.last, definition.last)
    assert definition.pair_count.any()
    for name in ("num_neighbours", "group", "pair_row", "pair_dirty"):
        np.testing.assert_array_equal(getattr(fetched, name), getattr(definition, name), err_msg=name)
    for name in (
        "seen", "gain", "shortlist_weight", "clock", "group_seen", "group_share", "hour", "pair_count",
    ):  # fmt: skip
        fetched_values, values = getattr(fetched, name), getattr(definition, name)
        np.testing.assert_allclose(fetched_values, values, rtol=1e-2, atol=1e-3, err_msg=name)
