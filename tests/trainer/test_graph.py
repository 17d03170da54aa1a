"""Both passes as a CUDA graph, on a graph that is not there: a replay reads only what was put in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.network import graph
from trainer.network.graph import Captures, Input

CPU = torch.device("cpu")
COMPUTE = graph._gradients


class Recorded:
    """To replay it is to compute the recorded call again, from the same memory into the same memory."""

    last: Any = None
    num_replays = 0

    @contextmanager
    def record(self, **_: object) -> Iterator[None]:
        yield
        self.plain, self.arguments, self.results = Recorded.last

    def replay(self) -> None:
        Recorded.num_replays += 1
        again = COMPUTE(self.plain, *self.arguments)
        with torch.no_grad():
            for old, new in zip(self.results, again, strict=True):
                for into, values in zip(old, new, strict=True):
                    into.copy_(values) if into is not None else None


def remembering(plain: nn.Module, *arguments: Tensor) -> Any:
    results = COMPUTE(plain, *arguments)
    Recorded.last = plain, arguments, results
    return results


@pytest.fixture(autouse=True)
def absent_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorded, "num_replays", 0)
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, value in {
        "CUDAGraph": Recorded, "Stream": lambda: stream, "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(), "graph": lambda made, **_: made.record(), "graph_pool_handle": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(graph, "_gradients", remembering)


class Picked(nn.Module):
    """The loss of some rows, and those rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_D = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.weight_D.grad = torch.zeros(2)

    def forward(self, row_VD: Tensor, picked_N: Tensor) -> tuple[Tensor, Tensor]:
        return (row_VD[picked_N] * self.weight_D).square().sum(), row_VD[picked_N].detach()


def learned(captures: Captures) -> list[Tensor]:
    """Outputs and gradients of steps on tables that grow, shrink and are longer than what counts."""
    plain, found = Picked(), list[Tensor]()
    for step, num_rows in enumerate((3, 5, 2, 7)):
        table = torch.arange(2.0 * num_rows).view(num_rows, 2) + step
        arguments = [Input(table, 5, varies=True), Input(torch.tensor([step, 4, 0]), 3)]
        (loss, rows), (gradient,) = captures.learn("size", lambda: plain, arguments, CPU)
        assert gradient is not None
        assert plain.weight_D.grad is not None
        found += [each.clone() for each in (loss, rows, gradient, plain.weight_D.grad)]
    return found


def test_replays_give_what_the_passes_give() -> None:
    expected, ours = learned(Captures(wanted=False)), learned(Captures(wanted=True))
    assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))
    assert Recorded.num_replays == 4
    assert expected[1].tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]  # row 4 was padding


def test_a_build_that_leaves_earlier_values_in_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def put_without_padding(self: Input, padded: Tensor) -> None:
        num = min(len(self.values), self.num_rows)
        with torch.no_grad():
            padded[:num] = self.values[:num]

    expected = learned(Captures(wanted=False))
    monkeypatch.setattr(Input, "put", put_without_padding)
    assert not all(torch.equal(*pair) for pair in zip(learned(Captures(wanted=True)), expected, strict=True))
