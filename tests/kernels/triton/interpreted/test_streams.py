"""The stand-in for a GPU does what streams and the allocator allow, and so notices what is not waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run in a process of its own by test_interpreter.py", allow_module_level=True)

from kernels import transfer
from kernels.transfer import ToHost, staged, to_device
from model import lookup
from model.lookup import added_at, rows_at
from model.memory import Memory
from tests.kernels.triton.elsewhere import elsewhere
from tests.kernels.triton.interpreted.test_elsewhere import ONE_GRAPH, TWO_GRAPHS, learner_on, losses, small_steps
from tests.kernels.triton.room import Room
from tests.kernels.triton.there import all_here
from trainer.network import graph

__all__ = ["small_steps"]
SEEDS = [None, 1, 2]


def at_here(x: Any) -> list[float]:
    """What a tensor's memory has now, whatever its stream has yet to do."""
    found: list[float] = x.here.tolist()
    return found


def test_what_a_capture_or_a_copy_cannot_do_is_noticed() -> None:
    with elsewhere() as gpu:
        x, graph = torch.ones(4, device="cuda:0"), torch.cuda.CUDAGraph()
        for refused in (x.cpu, lambda: float(x[0]), lambda: to_device(np.ones(4, np.float32), x.device)):
            with pytest.raises(AssertionError, match="in a capture"), torch.cuda.graph(graph):
                refused()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 2.0
        assert np.isnan(at_here(y)).all()
        x += 1.0
        graph.replay()
        coming = ToHost(y)
        assert np.isnan(coming._values[0].numpy()).all()  # it has not been waited for
        assert coming.wait()[0].tolist() == [4.0] * 4
        filled, pinned = staged(4, torch.float32, x.device)
        filled[:] = 1.0
        x.copy_(pinned, non_blocking=True)
        filled += 1.0
        with pytest.raises(AssertionError, match="pinned memory changed"):
            x.cpu()
        with pytest.raises(AssertionError, match="a kernel got a tensor of the host"):
            all_here((x, torch.ones(4)))
        assert gpu.waits


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stream_computes_in_order_and_only_what_is_waited_for(seed: int | None) -> None:
    with elsewhere(seed) as gpu:
        x = torch.ones(4, device="cuda:0")
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            y = x * 3.0
        x += 1.0  # whether this comes before or after, nobody has said
        torch.cuda.current_stream().wait_stream(beside)
        z = y + 1.0
        done = torch.cuda.Event()
        done.record()
        w = z * 2.0
        if seed is None:
            assert np.isnan(at_here(y)).all()
        done.synchronize()
        assert at_here(z) in ([4.0] * 4, [7.0] * 4)
        if seed is None:
            assert at_here(z) == [7.0] * 4 or np.isnan(at_here(w)).all()
            assert np.isnan(at_here(w)).all()
        assert w.cpu().tolist() == [2.0 * each for each in at_here(z)]
        assert len(gpu.queues.streams) == 2


@pytest.mark.parametrize("few", [0, 100], ids=["sorted", "one launch"])
def test_gradients_of_rows_that_are_read_several_times_are_added_in_order(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "FEW", few)
    rows, place = torch.randn(5, 3), torch.tensor([[4, 0, 4], [1, 4, 0]])
    outer = torch.randn(2, 3, 3)
    expected = torch.zeros(5, 3).index_add_(0, place.flatten(), outer.flatten(0, 1))
    with elsewhere() as gpu:
        x, at, grad = rows.to("cuda:0").requires_grad_(), place.to("cuda:0"), outer.to("cuda:0")
        y = rows_at(at, x)
        gpu.waits.clear()
        (found,) = torch.autograd.grad(y, x, grad)
        added = added_at(at.flatten(), grad.flatten(0, 1), 5)
        assert gpu.waits == []
        torch.testing.assert_close(y.detach().cpu(), rows[place])
        torch.testing.assert_close(found.cpu(), expected)
        torch.testing.assert_close(added.cpu(), expected)
        x.detach().index_add_(0, at[0], grad[0])
        with pytest.raises(AssertionError, match="a GPU adds what has the same place in any order"):
            x.cpu()


def without_a_wait(beside: Any, x: Tensor) -> Tensor:
    with torch.cuda.stream(beside):
        return x + 1.0


def freed_early(beside: Any, x: Tensor) -> Tensor:
    scratch = x * 3.0
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        y = scratch + 1.0
    del scratch  # its memory becomes that of the next one
    z = x * 5.0
    torch.cuda.current_stream().wait_stream(beside)
    return y + 0.0 * z


def told_of(beside: Any, x: Tensor) -> Tensor:
    scratch = x * 3.0
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        y = scratch + 1.0
    scratch.record_stream(beside)
    del scratch
    z = x * 5.0
    torch.cuda.current_stream().wait_stream(beside)
    return y + 0.0 * z


@pytest.mark.parametrize(("way", "is_right"), [(without_a_wait, False), (freed_early, False), (told_of, True)], ids=str)
def test_work_beside_that_nobody_waits_for_gives_other_numbers(
    way: Callable[[Any, Tensor], Tensor], is_right: bool
) -> None:
    expected, found = 2.0 if way is without_a_wait else 4.0, list[list[float]]()
    for seed in (None, *range(12)):
        with elsewhere(seed):
            x = torch.ones(4, device="cuda:0")
            found.append(way(torch.cuda.Stream(), x).cpu().tolist())
    assert (found == [[expected] * 4] * len(found)) == is_right


def test_memory_that_a_graph_has_baked_in_is_used_by_others_once_it_is_freed() -> None:
    with elsewhere() as gpu:
        x, lost = torch.ones(4, device="cuda:0"), torch.ones(4, device="cuda:0")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x + lost
        graph.replay()
        assert y.cpu().tolist() == [2.0] * 4
        reused = gpu.room.num_reused
        del lost
        other = x * 7.0
        assert gpu.room.num_reused > reused
        graph.replay()
        assert y.cpu().tolist() == [8.0] * 4
        assert other.cpu().tolist() == [7.0] * 4


@pytest.mark.parametrize("way", [ONE_GRAPH, TWO_GRAPHS, {}], ids=["one graph", "two graphs", "launches"])
def test_a_step_is_the_same_in_every_order_that_streams_allow(way: dict[str, Any]) -> None:
    found = []
    for seed in SEEDS[1:]:
        with elsewhere(seed) as gpu:
            found.append(losses(learner_on("cuda:0", 8, **way)))
            assert gpu.room.num_reused > 100
    assert found[0] == found[1] == pytest.approx(losses(learner_on("cpu", **way)), rel=1e-4)


def read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that does not wait for what comes from the GPU."""
    monkeypatch.setattr(ToHost, "wait", lambda self: [each.numpy() for each in self._values])


def one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that sends everything from the same pinned memory, without waiting for the copy before."""
    memory = {size: torch.zeros(1 << 18, dtype=torch.uint8) for size in (4, 8)}

    def again(num: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, Tensor]:
        host = memory[dtype.itemsize].view(dtype)[:num]
        host.is_pinned_here = True  # type: ignore[attr-defined]
        return host.numpy(), host

    for name in ("kernels.memory.sending.staged", "trainer.network.graph_step.staged"):
        monkeypatch.setattr(name, again)


def warm_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that warms a graph up on another stream, before its inputs are there. Looking up rows notices: by one
    launch, which refuses a place of -1, and with no memory used twice, since what another tensor left might do."""
    make = torch.cuda.Stream
    monkeypatch.setattr(Room, "put_back", lambda *_: None)
    monkeypatch.setattr(lookup, "FEW", 3072)

    def deaf() -> Any:
        stream = make()
        stream.wait_stream = lambda _stream: None  # type: ignore[method-assign]
        return stream

    monkeypatch.setattr(graph.torch.cuda, "Stream", deaf)


def no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that notes too early what is to be waited for."""

    def early(self: ToHost, *values: Tensor) -> None:
        event = torch.cuda.Event()
        event.record()
        made(self, *values)
        self._arrived = event

    made = ToHost.__init__
    monkeypatch.setattr(transfer.ToHost, "__init__", early)


@pytest.mark.parametrize(
    ("broken", "notices"),
    [
        (read_at_once, "expected probabilities"), (one_buffer, "pinned memory changed"),
        (warm_up_at_once, "out of range"), (no_event, "expected probabilities"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)  # fmt: skip
def test_a_build_that_does_not_wait_is_noticed(
    broken: Callable[[pytest.MonkeyPatch], None], notices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed = pytest.raises((AssertionError, IndexError, ValueError), match=notices)
    with monkeypatch.context() as patched, noticed, elsewhere():
        broken(patched)
        losses(learner_on("cuda:0", 8, **ONE_GRAPH))


def test_a_build_that_fetches_the_memory_in_every_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    grow = Memory.grow

    def fetches_first(memory: Memory, num_rows: int) -> None:
        assert memory.arrays is not None
        grow(memory, num_rows)

    monkeypatch.setattr(Memory, "grow", fetches_first)
    with elsewhere() as gpu:
        losses(learner_on("cuda:0", 8), gpu.waits)
        assert "nonzero at memory.py" in [each.split(":")[0] for each in gpu.waits]
