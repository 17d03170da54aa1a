"""How many threads a trainer computes with, and that a graph is captured while no other thread uses the GPU."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from trainer.config import TrainerConfig
from trainer.device import num_threads
from trainer.network.graph import ALONE, Captures


@pytest.mark.parametrize(
    ("told", "environment", "processors", "expected"),
    [
        (0, None, 1, 1),
        (0, None, 2, 1),
        (0, None, 16, 8),
        (3, None, 2, 3),
        (3, "5", 2, 3),
        (0, "5", 2, 5),
        (0, "2,1", 8, 2),
        (0, "all", 8, 4),
        (0, "-1", 8, 4),
        (0, " 3 ", 8, 3),
    ],
)
def test_half_of_the_processors_are_left_to_the_others_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, told: int, environment: str | None, processors: int, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    assert num_threads(TrainerConfig(num_threads=told)) == expected


def test_a_graph_is_captured_while_no_other_thread_uses_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(plain: nn.Module, *_: object, **__: object) -> nn.Module:
        assert ALONE.locked()
        return plain

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    assert not ALONE.locked()
    x = torch.ones(3)
    assert torch.equal(Captures(wanted=True).replay(3, nn.Identity, (x,)), x)
    assert not ALONE.locked()
