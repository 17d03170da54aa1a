"""The cost of ranking many candidates after a long history, and of the best items of a large catalogue: the engine's
time, without HTTP.

Ranking, on one and two threads, by the model for which the targets are stated: 4 layers of width 64 with 4 heads, and a
history of 512 interactions (1,024 tokens) whose keys and values are cached. The best items, on one thread, for several
users together, by the default model.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch

from bench.served import NOW_MS, START_MS, histories, versions
from bench.timing import Row, row
from model.config import ModelConfig
from serving.answering.engine import Engine
from serving.answering.request import Request
from serving.users.histories import Histories
from serving.versions.manager import HeldVersion, WeightsManager
from wire.example import Interactions
from wire.hashing import item_hash

NUM_PAST, NUM_ITEMS = 512, 10_000
NUM_MANY, NUM_BEST, NUM_TOGETHER = 1_000_000, 100, 64
TARGET_MS = {1024: 10.0, 2048: 50.0}
MODEL = ModelConfig(num_layers=4, num_heads=4, qk_width=16, value_width=16, max_context=NUM_PAST, num_positions=1024)


def run(quick: bool) -> list[Row]:
    """The rows of the report."""
    held, rounds = _held(NUM_ITEMS, MODEL), 15 if quick else 60
    engine, rows = Engine(Histories(10**9)), []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        for num, target in TARGET_MS.items():
            wall_ms, processor_ms = _measure(engine, held, [_request(num)], rounds)
            threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
            rows.append(row(f"rank {num:,} after {NUM_PAST} interactions, {threads}", wall_ms, "ms", target, most=True,
                            note=f"{processor_ms:.1f} ms of processor"))  # fmt: skip
    torch.set_num_threads(1)
    return [*rows, _best(rounds)]


def _held(num_items: int, model: ModelConfig) -> HeldVersion:
    """A version in service."""
    manager = WeightsManager()
    manager.stage(next(versions(num_items, model=model)))
    manager.swap()
    assert manager.current is not None
    return manager.current


def _best(rounds: int) -> Row:
    """Whole answers, users' states cached."""
    kept = histories(NUM_MANY)
    asked = [
        Request(user, past.interactions, past.user_features, NOW_MS, k=NUM_BEST)
        for user in (f"u{number}" for number in range(NUM_TOGETHER)) if (past := kept.get(user)) is not None
    ]  # fmt: skip
    wall_ms, processor_ms = _measure(Engine(kept), _held(NUM_MANY, ModelConfig()), asked, rounds)
    name = f"the {NUM_BEST} best of {NUM_MANY:,} items, {NUM_TOGETHER} users together, 1 thread"
    note = f"{processor_ms / NUM_TOGETHER:.2f} ms of processor"
    return row(name, wall_ms / NUM_TOGETHER, "ms per query", 3.0, most=True, note=note)


def _request(num: int) -> Request:
    rng = np.random.default_rng(0)
    hashes = np.array([item_hash(item) for item in range(NUM_ITEMS)], np.int64)
    past = Interactions(
        rng.choice(hashes, NUM_PAST), rng.integers(1, 8, NUM_PAST).astype(np.uint32),
        START_MS + np.cumsum(rng.integers(0, 600_000, NUM_PAST)), np.zeros(NUM_PAST, np.int64),
        np.full(NUM_PAST, np.nan, np.float32), np.zeros((NUM_PAST, 0), np.int64),
    )  # fmt: skip
    return Request("u", past, np.zeros(0, np.int64), NOW_MS, candidates=hashes[:num])


def _measure(engine: Engine, held: HeldVersion, asked: list[Request], rounds: int) -> tuple[float, float]:
    """Median milliseconds of answering them together: wall clock, and processor time."""
    wall_s, processor_s = [], []
    for turn in range(rounds + 2):
        began, used = time.perf_counter(), time.process_time()
        engine.answer(held, asked)
        if turn > 1:
            wall_s.append(time.perf_counter() - began)
            processor_s.append(time.process_time() - used)
    return 1000 * median(wall_s), 1000 * median(processor_s)
