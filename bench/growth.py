"""`python -m bench growth [--quick]`: a catalogue that grows to ten million items (a million with ``--quick``).

Items arrive in blocks of 100,000: first in the table alone (and again with rows of 16 bits, `trainer.row_precision`),
then everything else that a trainer keeps about an item gets its row. A pause is the time of the longest block; bytes
are the growth of the process. Then every item of a catalogue of four million (which take four gigabytes) gets a full
neighbourhood, and live steps (`bench scale`) on it take turns with steps on one of 10,000 items.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.scale import CONFIG, Traffic, fill_memory
from bench.streams.simulated import MODEL
from bench.timing import Row, row, take_turns
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from trainer.process import tune_interpreter

BLOCK, FEW_ITEMS = 100_000, 10_000
IN_USE = 4_000_000
"""The most items that also get a full neighbourhood."""
ROUNDS, STEPS_A_ROUND = 7, 10
PAUSE_MS, ROW_BYTES, SPEED = 150.0, 330.0, 0.8
HALF_BYTES = 2 * MODEL.item_width
"""What 16 bits save of a row."""


def resident_bytes() -> int:
    """The resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_blocks(num_items: int, work: Callable[[int, int], None]) -> tuple[list[float], float]:
    """The milliseconds of each block, and the bytes per item."""
    gc.collect()
    before, took_ms = resident_bytes(), list[float]()
    for start in range(0, num_items, BLOCK):
        began_s = time.perf_counter()
        work(start, min(num_items, start + BLOCK))
        took_ms.append(1000 * (time.perf_counter() - began_s))
    return took_ms, (resident_bytes() - before) / num_items


def grown(num_items: int, config: TrainerConfig = CONFIG) -> tuple[Learner, list[Row]]:
    """A learner with this many items, all of them in use, and the rows about its growth."""
    learner, rows = unused(num_items, config)
    before = resident_bytes()
    fill_memory(learner, num_items)
    name, num_unused = f"{num_items:,} items: memory and counts, in use: bytes per item", rows[-1]["value"]
    num_bytes = num_unused + (resident_bytes() - before) / num_items
    return learner, [*rows, row(name, num_bytes, "B", note="beside the table's")]


def unused(num_items: int, config: TrainerConfig = CONFIG) -> tuple[Learner, list[Row]]:
    """A learner with this many items that nobody has chosen yet, and the rows about its growth."""
    learner = Learner(MODEL, config)

    def keep(_: int, stop: int) -> None:
        learner.memory.grow(stop + 1)
        learner.rates.grow("item", stop + 1)
        learner.frequency.grow(stop + 1)
        learner.popularity.count_of(np.array([stop]))

    rows = list[Row]()
    for name, work, most in (
        ("the table", inserting(learner), ROW_BYTES),
        ("memory and counts, unused", keep, None),
    ):
        rows += growth(f"{num_items:,} items: {name}", num_items, work, most)
    return learner, rows


def inserting(learner: Learner) -> Callable[[int, int], None]:
    """A function that adds items to the table."""

    def insert(start: int, stop: int) -> None:
        learner.items.insert(np.arange(start + 1, stop + 1) * 7919, 10**12, 0)

    return insert


def growth(label: str, num_items: int, work: Callable[[int, int], None], most: float | None) -> list[Row]:
    """The longest block, and the bytes per item."""
    took_ms, item_bytes = in_blocks(num_items, work)
    note = f"median {np.median(took_ms):.1f} ms, {sum(took_ms) / 1000:.1f} s in all"
    return [
        row(f"{label}: longest block of {BLOCK:,}", max(took_ms), "ms", PAUSE_MS, note, most=True),
        row(f"{label}: bytes per item", item_bytes, "B", most, most=True),
    ]


def stepping(learner: Learner, num_items: int) -> Callable[[], object]:
    """A function that runs some live steps."""
    traffic = Traffic(num_items)
    traffic.restore(learner.histories)

    def work() -> None:
        for _ in range(STEPS_A_ROUND):
            learner.step(traffic.poll(0.0))

    return work


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    torch.set_num_threads(1)
    tune_interpreter()
    num_items = 1_000_000 if quick else 10_000_000
    rows = unused(num_items)[1]
    for precision in ("bfloat16", "float16"):
        halved = Learner(MODEL, replace(CONFIG, row_precision=precision))
        label = f"{num_items:,} items: the table, {precision}"
        rows += growth(label, num_items, inserting(halved), ROW_BYTES - HALF_BYTES)
        del halved
    num_items = min(num_items, IN_USE)
    large, more = grown(num_items)
    small, _ = grown(FEW_ITEMS)
    contenders = {"large": stepping(large, num_items), "small": stepping(small, FEW_ITEMS)}
    took_s = take_turns(contenders, ROUNDS)
    note = " and ".join(f"{1000 * took_s[name] / STEPS_A_ROUND:.1f} ms per step" for name in contenders)
    name = f"{num_items:,} items: speed of live steps over that at {FEW_ITEMS:,}"
    return [*rows, more[-1], row(name, took_s["small"] / took_s["large"], "x", SPEED, f"{note}, of processor time")]
