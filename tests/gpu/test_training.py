"""The trainer's step on the GPU: the same losses as on the CPU, step after step."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice

import pytest
import torch

from bench.gpu_pass import synthetic_examples
from kernels import build


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    """Compile the C++ kernels, which the id map needs: a GPU machine without our environment does not have them."""
    if not build.LIBRARY_PATH.exists():
        subprocess.run([sys.executable, "-m", "kernels.build"], check=True)


@pytest.mark.parametrize("full_softmax_max_items", [10_000, 10], ids=["full softmax", "sampled softmax"])
def test_a_trainer_on_the_gpu_learns_what_one_on_the_cpu_learns(full_softmax_max_items: int) -> None:
    from model.config import ModelConfig
    from trainer.config import TrainerConfig
    from trainer.step import Learner

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


def test_a_trainer_that_replays_graphs_learns_what_one_without_learns() -> None:
    from model.config import ModelConfig
    from trainer.config import TrainerConfig
    from trainer.step import Learner

    torch.set_float32_matmul_precision("highest")
    losses = {}
    for graphs in (False, True):
        config = TrainerConfig(device="cuda", exclude_seen=True, cuda_graphs=graphs)
        learner = Learner(ModelConfig(), config, "cuda")
        examples = synthetic_examples(40, 300, 60, 16, 200)
        losses[graphs] = []
        while batch := list(islice(examples, 16)):
            report = learner.step(batch)
            losses[graphs].append((report.retrieval_loss, report.ranking_loss))
        captured = learner.forward_pass.step_graphs
        assert captured is None or captured.works, "a capture failed; see its warning"
    for ours, theirs in zip(losses[True], losses[False], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
