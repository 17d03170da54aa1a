"""Choices that are learned from a sample of the rows are ranked like all others, and learned as without ranking."""

from __future__ import annotations

import numpy as np
import pytest

from bench.single_pass import RankedFirst
from kernels.memory import MemoryEvents, MemoryRules, memory_logits
from model.config import ModelConfig
from model.memory import Memory

NUM_ROWS, NUM_EVENTS, WIDTH, PART = 60, 400, 9, 16


def _events(*, repeats: bool) -> MemoryEvents:
    """Choices of 20 users in turns, who mostly go on with the next row."""
    rng, past = np.random.default_rng(3), {user: list[int]() for user in range(20)}
    targets, pasts, begins, ends = list[int](), list[int](), list[int](), list[int]()
    for number in range(NUM_EVENTS):
        mine = past[number % 20]
        target = mine[-1] % (NUM_ROWS - 1) + 1 if mine and rng.random() < 0.7 else int(rng.integers(1, NUM_ROWS))
        while not repeats and target in mine:
            target = int(rng.integers(1, NUM_ROWS))
        begins.append(len(pasts))
        pasts += mine
        ends.append(len(pasts))
        targets.append(target)
        mine.append(target)
    past_rows, begin_R, end_R = np.array(pasts, np.int32), np.array(begins, np.int64), np.array(ends, np.int64)
    now_R = np.arange(NUM_EVENTS, dtype=np.int64) * 1000
    return MemoryEvents(
        np.array(targets, np.int32), np.ones(NUM_EVENTS, np.uint8), past_rows, begin_R, end_R, past_rows, begin_R,
        end_R, np.zeros(len(past_rows), np.int64), now_R, past_rows[:0], 0 * begin_R, 0 * begin_R,
    )  # fmt: skip


def _memory(exclude: str) -> Memory:
    memory = Memory(ModelConfig(), MemoryRules(exclude=exclude))
    memory.grow(NUM_ROWS)
    return memory


@pytest.mark.parametrize("repeats", [True, False])
def test_ranks_are_those_among_all_rows_and_what_is_learned_stays_the_same(*, repeats: bool) -> None:
    events, rng = _events(repeats=repeats), np.random.default_rng(5)
    query_AD = rng.normal(size=(NUM_EVENTS, WIDTH)).astype(np.float32)
    table_VD = rng.normal(size=(NUM_ROWS, WIDTH)).astype(np.float32)
    memory, plain = _memory("auto"), _memory("auto")
    ranked, found, expected = RankedFirst(memory), list[int](), list[int]()
    for start in range(0, NUM_EVENTS, PART):
        part = slice(start, start + PART)
        before = memory.copy()
        for r in range(start, start + PART):
            one = slice(r, r + 1)
            logit_AV = memory_logits(query_AD[one], table_VD, NUM_ROWS, WIDTH - 1)
            exact = before.copy().learn(events[one], logit_AV)
            expected += [int(exact.rank_R[0]), int(exact.model_rank_R[0])]
            before.learn_sampled(events[one], query_AD[one], table_VD, WIDTH - 1)
        outcome = ranked.learn(events[part], query_AD[part], table_VD, WIDTH - 1)
        found += np.stack([outcome.rank_R, outcome.model_rank_R], axis=1).ravel().tolist()
        plain.learn_sampled(events[part], query_AD[part], table_VD, WIDTH - 1)
    assert found == expected
    assert memory.leaves_out_repeats is not repeats
    assert 0 < np.mean(np.array(found)[0::2] == 1) < 1
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(memory.state_dict()[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
