"""The cost of ranking many candidates after a long history: the engine's time, without HTTP, on one and two threads.

The model is the one for which the targets are stated: 4 layers of width 64 with 4 heads, and a history of 512
interactions (1,024 tokens) whose keys and values are cached.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch

from bench.served import NOW_MS, START_MS, versions
from bench.timing import Row, row
from model.config import ModelConfig
from serving.engine import Engine
from serving.histories import Histories
from serving.request import Request
from serving.weights_manager import HeldVersion, WeightsManager
from wire.example import Interactions
from wire.hashing import item_hash

NUM_PAST, NUM_ITEMS = 512, 10_000
TARGET_MS = {1024: 10.0, 2048: 50.0}
MODEL = ModelConfig(num_layers=4, num_heads=4, qk_width=16, value_width=16, max_context=NUM_PAST, num_positions=1024)


def run(quick: bool) -> list[Row]:
    """The rows of the report."""
    manager, rounds = WeightsManager(), 15 if quick else 60
    manager.stage(next(versions(NUM_ITEMS, model=MODEL)))
    manager.swap()
    held = manager.current
    assert held is not None
    engine, rows = Engine(Histories(10**9)), []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        for num, target in TARGET_MS.items():
            wall_ms, processor_ms = _measure(engine, held, _request(num), rounds)
            threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
            rows.append(row(f"rank {num:,} after {NUM_PAST} interactions, {threads}", wall_ms, "ms", target, most=True,
                            note=f"{processor_ms:.1f} ms of processor"))  # fmt: skip
    torch.set_num_threads(1)
    return rows


def _request(num: int) -> Request:
    rng = np.random.default_rng(0)
    hashes = np.array([item_hash(item) for item in range(NUM_ITEMS)], np.int64)
    past = Interactions(
        rng.choice(hashes, NUM_PAST), rng.integers(1, 8, NUM_PAST).astype(np.uint32),
        START_MS + np.cumsum(rng.integers(0, 600_000, NUM_PAST)), np.zeros(NUM_PAST, np.int64),
        np.full(NUM_PAST, np.nan, np.float32), np.zeros((NUM_PAST, 0), np.int64),
    )  # fmt: skip
    return Request("u", past, np.zeros(0, np.int64), NOW_MS, candidates=hashes[:num])


def _measure(engine: Engine, held: HeldVersion, request: Request, rounds: int) -> tuple[float, float]:
    """Median milliseconds of an answer: wall clock, and processor time."""
    wall_s, processor_s = [], []
    for turn in range(rounds + 2):
        began, used = time.perf_counter(), time.process_time()
        engine.answer(held, [request])
        if turn > 1:
            wall_s.append(time.perf_counter() - began)
            processor_s.append(time.process_time() - used)
    return 1000 * median(wall_s), 1000 * median(processor_s)
