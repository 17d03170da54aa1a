"""Kernels that read a table of 16 bits find in it what they find in the same numbers as float32, at every level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.heads import HeadRules, heads
from kernels.memory import memory_learn_sampled, memory_logits, memory_logits_of
from kernels.row_types import Rows, as_float32, type_of
from kernels.tokens import tokens
from tests.kernels import test_heads, test_tokens
from tests.kernels.test_memory import RULES, Stream, assert_same_memory
from tests.kernels.test_memory_sampled import UNIT_WIDTH, WIDTH, counted, parts
from tests.kernels.yardstick import force, levels

HALVES = (torch.bfloat16, torch.float16)
each_level = pytest.mark.parametrize("level", levels())
each_type = pytest.mark.parametrize("dtype", HALVES, ids=str)


def array_of(rows: torch.Tensor) -> Rows:
    return rows.view(torch.uint16).numpy() if rows.dtype == torch.bfloat16 else rows.numpy()


@each_level
@each_type
def test_every_number_is_read_as_what_it_is(monkeypatch: pytest.MonkeyPatch, level: str, dtype: torch.dtype) -> None:
    """Of all 65,536, as the logits of a query of one column."""
    force(monkeypatch, level)
    rows = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[:, None]
    rows = rows[rows[:, 0].isfinite()]
    found = memory_logits(np.ones((1, 1), np.float32), array_of(rows), len(rows), 0)[0]
    np.testing.assert_array_equal(found, rows[:, 0].float().numpy())
    np.testing.assert_array_equal(as_float32(array_of(rows)), rows.float().numpy())


@each_level
@each_type
def test_the_heads_and_tokens_of_a_step(monkeypatch: pytest.MonkeyPatch, level: str, dtype: torch.dtype) -> None:
    force(monkeypatch, level)
    case = test_heads.CASES["odd widths"]
    inputs = test_heads.cast(test_heads.make_inputs(**case), torch.float32)
    params = test_heads.cast(test_heads.make_params(case["model"], case["width"], case["kinds"]), torch.float32)
    rules: HeadRules = test_heads.RULES
    rows = inputs.table_VD.to(dtype)
    for backend in ("cpp", "reference"):
        whole, half = (
            heads(replace(inputs, table_VD=table), params, rules, None, backend=backend)
            for table in (rows.float(), rows)
        )
        assert torch.equal(whole.logit_QV, half.logit_QV)
    gradients = [test_heads.cast(params, torch.float32) for _ in range(2)]
    both = [
        heads(replace(inputs, table_VD=table), params, rules, into)
        for table, into in zip((rows.float(), rows), gradients, strict=True)
    ]
    assert torch.equal(both[0].d_table_VD, both[1].d_table_VD)
    assert both[1].d_table_VD.dtype == torch.float32
    given, weights, _ = test_tokens.make(**test_tokens.CASES["odd widths"])
    table_VD, *rest = (test_tokens.cast(each, torch.float32) for each in given)
    weights = test_heads.cast(weights, torch.float32)
    rows = table_VD.to(dtype)
    for backend in ("cpp", "reference"):
        assert torch.equal(*(tokens(table, *rest, weights, backend=backend) for table in (rows.float(), rows)))


@each_level
@each_type
def test_the_memorys_logits(monkeypatch: pytest.MonkeyPatch, level: str, dtype: torch.dtype) -> None:
    force(monkeypatch, level)
    stream = Stream(num_rows=300, num_events=40, num_columns=2)
    query_AD, table_VD = parts(stream)
    rows = torch.from_numpy(table_VD).to(dtype)
    whole, half = rows.float().numpy(), array_of(rows)
    memories, outcomes = [], []
    for table in (whole, half):
        memories.append(counted(Stream(num_rows=300, num_columns=2), 16, 200, RULES).copy())
        outcomes.append(memory_learn_sampled(memories[-1], 300, stream.events(), query_AD, table, UNIT_WIDTH, RULES))
    assert_same_memory(*memories)
    np.testing.assert_allclose(outcomes[1].loss_R, outcomes[0].loss_R, rtol=1e-5)
    row, begin_A1 = np.arange(len(query_AD), dtype=np.int32) * 7 % 300, np.arange(len(query_AD) + 1)
    for backend in ("cpp", "reference"):
        logits = [memory_logits(query_AD, table, 300, UNIT_WIDTH, backend=backend) for table in (whole, half)]
        np.testing.assert_allclose(logits[1], logits[0], rtol=1e-5, atol=1e-5)
        some = [
            memory_logits_of(query_AD, table, row, begin_A1, UNIT_WIDTH, backend=backend) for table in (whole, half)
        ]
        np.testing.assert_allclose(some[1], some[0], rtol=1e-5, atol=1e-5)
        assert whole.shape[1] == WIDTH


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got torch\.float64; convert it"):
        type_of(torch.zeros(1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected a contiguous float32, uint16, float16 matrix, got int32"):
        memory_logits(np.ones((1, 1), np.float32), np.ones((1, 1), np.int32), 1, 0)
