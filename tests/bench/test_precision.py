"""Each way of storing rows is what it says, and is compared with float32."""

from __future__ import annotations

import pytest
import torch

from bench.precision import WAYS, compare, to_nearest
from bench.timing import one_thread
from tests.bench.samples import chain, settings_of
from trainer.config import TrainerConfig
from trainer.learner.step import Learner


def test_every_way_is_compared_with_float32() -> None:
    actions = chain(200)
    rows = {row["name"]: row for row in compare(settings_of(actions), actions, [1])}
    assert len(rows) == 3 * len(WAYS)
    assert rows["float32: Headrace, HR@10"]["note"].startswith("+0.0000 to float32")
    assert rows["bfloat16: Headrace, HR@10"]["target"] == 0.001
    assert 0 < rows["float16: NE"]["value"] < 2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_to_nearest_loses_what_stochastic_rounding_keeps(precision: str) -> None:
    from tests.trainer.samples import MODEL

    moved = []
    with one_thread():
        for prepare in (lambda _: None, to_nearest):
            learner = Learner(MODEL, TrainerConfig(device="cpu", row_precision=precision))
            prepare(learner)
            table = learner.items
            row = table.insert(torch.arange(1, 2).numpy(), 0, 0)
            table.put(row, table.live[row], torch.ones((1, table.width)), None)
            for step in range(50):
                table.state.zero_()
                table.learn(row, torch.ones((1, table.width)), 1e-4, step)
            moved.append(1 - float(table.read(row)[0].mean()))
    assert moved[0] == pytest.approx(50e-4, rel=0.5)
    assert moved[1] == 0.0
