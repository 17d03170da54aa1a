"""A trainer's step as on a GPU: it learns what one on the CPU learns, and the host waits for its results alone."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run in a process of its own by test_interpreter.py", allow_module_level=True)

from bench.on_gpu.single_pass import synthetic_examples
from model import lookup
from model.config import ModelConfig
from tests.kernels.triton.elsewhere import elsewhere
from tests.kernels.triton.interpreted.test_padding import with_domains
from tests.trainer.samples import KINDS, World
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import learner_arrays, restore_learner, small_arrays
from trainer.config import TrainerConfig
from trainer.learner.step import Learner, StepReport
from trainer.network import graph_step
from trainer.versions.collection import Collection
from wire.example import Example, rows_of

MODEL = ModelConfig(num_layers=2, model_width=16, num_heads=1, qk_width=16, value_width=16, item_width=16,
                    num_positions=32, num_time_buckets=8, max_context=8, memory_neighbours=8)  # fmt: skip


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("LEAST_INTERACTIONS", 24), ("LEAST_USERS", 4), ("LEAST_ROWS", 80)):
        monkeypatch.setattr(graph_step, name, size)
    monkeypatch.setattr(lookup, "FEW", 20)  # fewer than some steps have


def config_of(most: int = 100, **switches: Any) -> TrainerConfig:
    return TrainerConfig(
        device="cpu", exclude_seen=False, full_softmax_max_items=most, num_negatives=8, evict_every_steps=2, **switches
    )


def learner_on(device: str, group: int = 1, model: ModelConfig = MODEL, **switches: Any) -> Learner:
    return Learner(model, config_of(memory_group=group, **switches), device)


def with_values(example: Example) -> Example:
    """The example with a value of each interaction but some."""
    rows = example.interactions
    value = np.where(rows.item_hash % 4 > 0, rows.item_hash % 7, np.nan).astype(np.float32)
    return replace(example, rows=rows_of(replace(rows, value=value)))


def losses(learner: Learner, waits: list[str] | None = None) -> list[float]:
    """The losses of two steps with domains, and with values if the model predicts them. ``waits``: cleared after the
    first, which sends what is sent once."""
    found, examples = list[float](), map(with_domains, synthetic_examples(5, 30, 8, 3, 12))
    if learner.model_config.predict_value:
        examples = map(with_values, examples)
    for step in range(2):
        report = learner.step(list(islice(examples, 4)))
        found += [report.retrieval_loss, report.ranking_loss]
        if waits is not None and step == 0:
            waits.clear()
    learner.scoring.settle()
    return found


ONE_GRAPH, TWO_GRAPHS = {"cuda_graphs": True, "graph_gradients": True}, {"cuda_graphs": True}


@pytest.mark.parametrize(
    ("model", "way"),
    [
        (MODEL, ONE_GRAPH), (MODEL, TWO_GRAPHS | {"row_precision": "bfloat16"}), (MODEL, {"most": 5}),
        (replace(MODEL, block="fuxi", ffn_width=24, num_layers=1), TWO_GRAPHS),
    ],
    ids=["one graph", "two graphs, rows of 16 bits", "launches, sampled loss", "two graphs, FuXi"],
)  # fmt: skip
def test_a_step_on_a_gpu_waits_for_nothing_but_its_results(model: ModelConfig, way: dict[str, Any]) -> None:
    """And gives what one on the CPU gives, where graphs are captured in the first step and replayed in the second."""
    expected = losses(learner_on("cpu", model=model, **way))
    with elsewhere() as gpu:
        learner = learner_on("cuda:0", 8, model, **way)
        assert losses(learner, gpu.waits) == pytest.approx(expected, rel=1e-4)
        assert gpu.waits == []
        saved = learner_arrays(learner)
    assert (saved["memory.after"] > 0).any()
    replays = [graph.num_replays for graph in gpu.captures.graphs]
    assert sum(replays) == (2 if way is ONE_GRAPH else 4 if "cuda_graphs" in way else 0)
    assert max(replays, default=2) == 2, "a graph is replayed in another step"


OTHERS = {"num_features": 2, "num_user_features": 1, "kinds": KINDS}
RANKS_CHECK = "_local_scalar_dense at sharding.py"
"""Several processes learn nothing before the gradients are known to be finite."""


@pytest.mark.parametrize(
    ("model", "way", "waits"),
    [
        (replace(MODEL, **OTHERS, predict_value=True, use_value=True),
         {"stochastic_length_alpha": 1.5, "kind_weights": {"click": 2.0}, "feedback": "fnw"}, set()),
        (replace(MODEL, **OTHERS, predict_value=True), {"admit_after": 3, "most": 5}, set()),
        (replace(MODEL, **OTHERS, user_tokens=True), {"admit_after": 3, "feedback": "reversal"} | ONE_GRAPH, set()),
        (replace(MODEL, **OTHERS), {"admit_after": 3, "shards": 2}, {RANKS_CHECK}),
        (replace(MODEL, **OTHERS), {"admit_after": 3, "shards": 2, "most": 5}, {RANKS_CHECK}),
    ],
    ids=["values, thinned", "values, sampled, admitted late", "user tokens, one graph", "shards", "shards, sampled"],
)  # fmt: skip
def test_no_option_makes_a_step_wait(model: ModelConfig, way: dict[str, Any], waits: set[str]) -> None:
    """Features, values, late feedback, items without rows."""
    alone, worlds = learner_on("cpu", model=model, **way), [World(3), World(3)]
    expected = [alone.step(worlds[0].examples(5)) for _ in range(4)]
    with elsewhere() as gpu:
        learner = learner_on("cuda:0", 8, model, **way)
        found = list[StepReport]()
        for step in range(4):
            found.append(learner.step(worlds[1].examples(5)))
            if step == 0:
                gpu.waits.clear()
        assert {each.split(":")[0] for each in gpu.waits} == waits
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.retrieval_loss, ours.ranking_loss) == pytest.approx(
            (theirs.retrieval_loss, theirs.ranking_loss), rel=1e-3
        )
    assert learner.metrics.values.sums == pytest.approx(alone.metrics.values.sums, rel=1e-3)
    assert bool(alone.metrics.values.sums[1]) == model.predict_value


def test_values_are_learned_the_same_with_one_graph_and_with_two() -> None:
    """A step that predicts values captures its layers alone, whether one graph is asked for or two."""
    model = replace(MODEL, predict_value=True)
    expected = losses(learner_on("cpu", model=model))
    with elsewhere() as gpu:
        for way in (ONE_GRAPH, TWO_GRAPHS):
            learner = learner_on("cuda:0", 8, model, **way)
            assert losses(learner) == pytest.approx(expected, rel=1e-4)
            assert learner.forward_pass.step_graphs is None
            assert learner.metrics.values.mean != 0
        assert gpu.captures.graphs


def test_a_learner_on_a_gpu_grows_evicts_publishes_and_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its tables and its memory get more room and lose items, with graphs captured before that."""
    monkeypatch.setattr("trainer.learner.batch_rows.LEAST_BESIDE", 1)
    monkeypatch.setattr("model.memory.FIRST_CAPACITY", 4)
    monkeypatch.setattr(graph_step, "LEAST_INTERACTIONS", 64)
    examples = list(synthetic_examples(4, 60, 8, 2, 12))
    steps = [examples[start : start + 3] for start in range(0, 15, 3)]

    def learned(learner: Learner, steps: list[list[Example]]) -> list[tuple[float, float]]:
        reports = [learner.step(step) for step in steps]
        return [(report.retrieval_loss, report.ranking_loss) for report in reports]

    def resumed(device: str, folder: Path, **way: Any) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        way["max_items"] = 3
        learner = learner_on(device, **way)
        before = learned(learner, steps[:3])
        assert learner.memory.arrays.capacity > 4
        assert learner.items.num_dropped > 0
        folder.mkdir()
        checkpoints = CheckpointFolder(folder, print)
        saver = Saver(checkpoints)
        saver.begin(learner)
        collection = Collection(learner, whole=True)
        meta = {"model": MODEL.as_dict(), "trainer": learner.config.learning_dict()}
        while not (saver.advance(1000) and collection.advance(1000)):
            pass
        assert collection.cut(learner)().num_bytes > 0
        saver.cut(Checkpoint(learner.num_steps, small_arrays(learner), meta))
        assert saver.wait() is None
        saver.close()
        after, other = learned(learner, steps[3:]), learner_on(device, **way)
        found = checkpoints.load()
        assert found is not None
        restore_learner(other, found)
        for each in examples[:9]:
            other.histories.fold(each)
        assert learned(other, steps[3:]) == after
        ours, theirs = learner_arrays(learner), learner_arrays(other)
        for name in ("items.weight", "items.state", "memory.after", "memory.weight", "optimiser.flat"):
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        return before, after

    expected = resumed("cpu", tmp_path / "cpu")
    with elsewhere():
        found = resumed("cuda:0", tmp_path / "gpu", group=8, **ONE_GRAPH)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_with_the_memory_on_the_host_a_step_waits_for_the_network_s_logits() -> None:
    expected = losses(learner_on("cpu"))
    with elsewhere() as gpu:
        learner = learner_on("cuda:0")
        assert losses(learner, gpu.waits) == pytest.approx(expected, rel=1e-4)
        assert [each.split(":")[0] for each in gpu.waits] == ["_to_copy from the GPU at memory_pass.py"]


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
