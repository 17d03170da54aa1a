"""No launch lets threads of a program, or programs, disturb each other, or leaves the memory of its arguments."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run in a process of its own by test_interpreter.py", allow_module_level=True)

import triton
import triton.language as tl

from kernels.memory import MemoryArrays, MemoryRules
from kernels.memory.arrays import NUM_HOURS
from kernels.memory.device import DeviceMemory
from tests.kernels.test_memory import Stream
from tests.kernels.triton import cases
from tests.kernels.triton.races import Launch, checked

CPU = "cpu"


def memory(num_columns: int) -> None:
    """Events whose choices have neighbours, in groups of eight."""
    stream = Stream(num_rows=50, num_users=3, num_events=14, num_columns=num_columns)
    arrays = MemoryArrays.empty(64, 16, 8, num_columns, 64 * 2**num_columns, 64, NUM_HOURS)
    there = DeviceMemory(arrays, MemoryRules(), torch.device(CPU), 8)
    for _ in range(2):
        events = stream.events()
        there.learn(50, events, torch.zeros(len(events), 50))


OPS: dict[str, Callable[[], None]] = {
    "attention": lambda: cases.check_attention(CPU, lengths=[5, 0, 33, 3], context=4, targets=6, groups=1),
    "attention beyond the near table": lambda: cases.check_attention(
        CPU, lengths=[290, 3], heads=1, groups=1, positions=100, buckets=7
    ),
    "attention, times that go back": lambda: cases.check_attention(CPU, lengths=[5, 30], ordered=False),
    "layer": lambda: cases.check_layer(CPU, lengths=[5, 0, 33, 7], dropout=0.2, bias=True),
    "delta attention": lambda: cases.check_delta(CPU, new=[3, 0, 20, 1], cached=[40, 5, 0, 70]),
    "sampled softmax": lambda: cases.check_sampled(CPU, negatives="shared", width=20, log_q=True),
    "own negatives": lambda: cases.check_sampled(CPU, negatives="own", width=20, log_q=True),
    "full softmax": lambda: cases.check_full(CPU, valid=True, width=20),
    "ranks and best rows": lambda: cases.check_best(CPU, masked=True),
    "adagrad": lambda: cases.check_adagrad(CPU),
    "stochastic length": lambda: cases.check_length(CPU, recency=True, sometimes_whole=True),
    "memory": lambda: memory(0),
    "memory with groups": lambda: memory(2),
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_no_races_and_stays_within_its_arguments(name: str) -> None:
    with checked() as found:
        OPS[name]()
    assert found == set()


@pytest.mark.parametrize(
    ("name", "notices"),
    [
        ("memory with groups", ["triton_features.py", "triton_groups.py", "triton_predict.py", "triton_pick.py"]),
        ("attention beyond the near table", ["triton_bias_gradient.py"]),
    ],
)
def test_a_build_without_barriers_is_noticed(name: str, notices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launch, "wait", lambda _: None)
    with checked() as found:
        OPS[name]()
    assert {line.partition(": ")[2].partition(":")[0] for line in found} >= set(notices)
    assert {line.partition(":")[0] for line in found} <= {
        "written and read in one stretch", "read and written in one stretch", "written twice in one stretch"
    }  # fmt: skip


@triton.jit
def wrong_kernel(x_ptr, out_ptr, num, HOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """Something that goes right in the interpreter."""
    place = tl.arange(0, 16)
    if HOW == 0:  # another thread's element, before that one has written it
        tl.store(out_ptr + place, place.to(tl.float32))
        tl.store(out_ptr + place, tl.load(out_ptr + 15 - place))
    elif HOW == 1:  # programs write one address
        tl.store(out_ptr, tl.program_id(0).to(tl.float32))
    elif HOW == 2:  # a program reads what another one writes
        tl.store(out_ptr + tl.program_id(0), tl.load(out_ptr + num - 1 - tl.program_id(0)))
    elif HOW == 3:  # a mask that is missing
        tl.store(out_ptr + place, tl.load(x_ptr + place))
    elif HOW == 4:  # a sum whose order is open
        tl.atomic_add(out_ptr + place * 0, tl.load(x_ptr + place, mask=place < num, other=0.0))
    elif HOW == 5:  # two elements with one address
        tl.store(out_ptr + place // 2, place.to(tl.float32), mask=place < num)


@pytest.mark.parametrize(
    ("how", "notices"),
    [
        (0, "written and read in one stretch"), (1, "written by two programs"),
        (2, "written by a program and read by another"), (3, "read outside of all arguments"),
        (4, "written twice in one stretch"), (5, "written twice in one stretch"),
    ],
)  # fmt: skip
def test_a_kernel_that_a_device_could_run_otherwise_is_noticed(how: int, notices: str) -> None:
    x, out = torch.ones(12), torch.zeros(16)
    with checked() as found:
        launch: Any = wrong_kernel[(2 if how in (1, 2) else 1,)]
        launch(x, out, 2 if how == 2 else 12, HOW=how)
    assert notices in {line.partition(":")[0] for line in found}
