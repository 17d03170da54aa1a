"""How much live traffic a trainer learns per processor second: one new interaction of a user with 200 earlier ones.

Steps of a given number of users, each with one new interaction, by how much context is computed
(`trainer.max_train_context`: all 200 interactions with gradients through all of them, or fewer, as the trainer does by
default); and what that context is worth: prequential HR@10 and NE on a simulated world's traffic. Contenders take
turns, so ratios are meaningful on a shared machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bench.streams.simulated import MODEL, steps
from bench.timing import Row, row, take_turns
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from trainer.process import tune_interpreter
from wire.example import Example, Interactions, rows_of

NUM_BEFORE, NUM_ITEMS, SEGMENT_LEN, ROUNDS = 200, 2_000, 16, 8
CONTEXTS, SIZES = (200, 32, 16, 8), (32, 128)
TARGET, METRICS_SHARE = 5_000.0, 0.05
CONFIG = TrainerConfig(device="cpu")


def config_of(max_context: int) -> TrainerConfig:
    """The configuration: gradients through the whole context if all of it is computed, otherwise the default."""
    return replace(CONFIG, max_train_context=max_context, context_gradient=max_context == CONTEXTS[0])


class Users:
    """Users with `NUM_BEFORE` interactions each, who continue one at a time, and a learner that knows them."""

    def __init__(self, max_context: int, num_users: int) -> None:
        rng, num = np.random.default_rng(0), NUM_BEFORE + 200
        self.learner = Learner(MODEL, config_of(max_context))
        self._lives = [
            Interactions(
                rng.integers(1, NUM_ITEMS + 1, num) * 7919, rng.integers(1, 8, num).astype(np.uint32),
                10**12 + np.cumsum(rng.integers(1, 60_000, num)), np.zeros(num, np.int64),
                np.full(num, np.nan, np.float32), np.zeros((num, 1), np.int64),
            )
            for _ in range(num_users)
        ]  # fmt: skip
        self._ends, self._number = [NUM_BEFORE] * num_users, 0
        for user in range(num_users):
            for start in range(0, NUM_BEFORE, SEGMENT_LEN):
                self.learner.histories.fold(self._example(user, start, min(start + SEGMENT_LEN, NUM_BEFORE), 0))
        self.learner.items.insert(np.arange(1, NUM_ITEMS + 1) * 7919, 10**12, 0)

    def step(self) -> float:
        """Learn the next interaction of every user; returns processor seconds, excluding those for making examples."""
        told = []
        for user, place in enumerate(self._ends):
            told.append(self._example(user, place // SEGMENT_LEN * SEGMENT_LEN, place + 1, 1))
            self._ends[user] = place + 1
        began_s = time.process_time()
        self.learner.step(told)
        return time.process_time() - began_s

    def _example(self, user: int, first: int, stop: int, num_new: int) -> Example:
        self._number += 1
        none, life = np.empty(0, np.int64), self._lives[user]
        return Example(
            user=str(user), partition=0, writer_epoch=1, number=self._number, segment=first // SEGMENT_LEN,
            segment_len=SEGMENT_LEN, num_new=num_new, feedback_index=none, feedback_bits=np.empty(0, np.uint32),
            rows=rows_of(Interactions(*(getattr(life, name)[first:stop] for name in Interactions.__slots__))),
            session_hash=np.zeros(stop - first, np.int64), action_ids=none, user_feature_hash=none, user_offset=0,
            user_index=0, applied_offset=0, resume_from_offset=0, newest_event_ms=0, newest_record_ms=0,
        )  # fmt: skip


def speeds(quick: bool) -> list[Row]:
    """Interactions per processor second."""
    sizes = SIZES[:1] if quick else SIZES
    groups = {(context, size): Users(context, size) for context in CONTEXTS for size in sizes}
    tune_interpreter()
    seconds = take_turns({str(key): group.step for key, group in groups.items()}, ROUNDS if quick else 3 * ROUNDS)
    rows = []
    for context, size in groups:
        took_s = seconds[str((context, size))]
        name = f"steps of {size}, one new with {NUM_BEFORE} before it, {context} computed"
        target = TARGET if (context, size) == (CONFIG.max_train_context, 32) else None
        rows.append(
            row(name, size / took_s, "interactions/s", target, f"{1000 * took_s:.1f} ms of processor time per step")
        )
    return rows


def metrics_cost(quick: bool) -> Row:
    """Processor time of the metrics and their baselines in a default step of 32 users, and its share of the step."""
    users, spent_s = Users(CONFIG.max_train_context, SIZES[0]), [0.0]
    learner = users.learner

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            began_s = time.process_time()
            result = work(*arguments)
            spent_s[0] += time.process_time() - began_s
            return result

        return run

    evaluator = learner.scoring.evaluator
    evaluator.ask, evaluator.count = timed(evaluator.ask), timed(evaluator.count)  # type: ignore[method-assign]
    learner.popularity.learn = timed(learner.popularity.learn)  # type: ignore[method-assign]
    learner.rates.predict = timed(learner.rates.predict)  # type: ignore[method-assign]
    users.step()
    spent_s[0] = 0.0
    took_s = sum(users.step() for _ in range(ROUNDS * (4 if quick else 16)))
    note = f"{1000 * spent_s[0] / (ROUNDS * (4 if quick else 16)):.2f} ms a step: ranks, slices, baselines, NE, AUC"
    return row("the metrics' share of that step", spent_s[0] / took_s, "of its time", METRICS_SHARE, note, most=True)


def quality(quick: bool) -> list[Row]:
    """HR@10 and NE on the simulated world's traffic, learned as it arrives."""
    rows, whole = list[Row](), dict[str, float]()
    for context in CONTEXTS:
        learner = Learner(MODEL, config_of(context))
        for examples in steps(4_000 if quick else 24_000, seed=0):
            learner.step(examples)
        summary = learner.metrics.summary()
        found = {"HR@10": summary["retrieval"]["all"]["model"]["hr10"], "NE": summary["ranking"]["all"]["ne"]}
        for name, value in found.items():
            whole.setdefault(name, value)
            change = f"{100 * (value / whole[name] - 1):+.2f}% of that with {CONTEXTS[0]}"
            rows.append(row(f"simulated world, {context} computed: {name}", value, "", note=change))
    return rows


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(CONFIG.float32_matmul_precision)
    try:
        return [*speeds(quick), metrics_cost(quick), *quality(quick)]
    finally:
        torch.set_float32_matmul_precision("highest")
