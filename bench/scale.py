"""`python -m bench scale [--quick]`: what storing and publishing a large catalogue costs a training step.

A trainer of a million items (100,000 with ``--quick``) makes live steps (32 users, one new interaction each), first
undisturbed, then while a checkpoint is written, while the frozen copy is read that live metrics compare with, while a
base and deltas are published, and while both happen at once. What is measured is a turn: a step with everything else
that the training thread does. The publisher is real except for the broker: versions are assembled, hashed and split
into chunks, then dropped. For comparison, the same state is copied and written at once on the training thread, as
earlier builds did.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as save_tensors

from bench.streams.simulated import MODEL
from bench.timing import Row, row
from model.distinct import counted
from trainer.checkpoint.snapshot import learner_arrays, weights_snapshot
from trainer.config import TrainerConfig
from trainer.examples.histories import TrainedHistories
from trainer.frozen_rival import FrozenRival
from trainer.learner.step import Learner
from trainer.loop import Trainer
from trainer.process import tune_interpreter
from trainer.sources.source import Position
from trainer.versions.publisher import Publisher
from trainer.versions.writer import WeightsWriter
from wire.config import KafkaConfig
from wire.example import Example, Interactions, rows_of
from wire.tensors import Tensors
from wire.weights import Manifest, PlanStep

NUM_USERS, USERS_A_STEP, NUM_BEFORE, SEGMENT_LEN = 2_000, 32, 64, 16
NUM_ALONE = 300
"""How many undisturbed turns are measured."""
CONFIG = TrainerConfig(
    device="cpu", num_threads=1, checkpoint_every_s=1e9, publish_every_s=1e9, step_linger_s=0.0, frozen_every_s=0.0
)
COMPARED = replace(CONFIG, frozen_every_s=1e9)


class Traffic:
    """An endless source of live examples, with each step's users drawn at random."""

    exhausted = False
    max_buffered = 0

    def __init__(self, num_items: int, users_a_step: int = USERS_A_STEP) -> None:
        self._users_a_step = users_a_step
        self._rng, self._num_items, self._number = np.random.default_rng(0), num_items, 0
        self._places = np.full(NUM_USERS, NUM_BEFORE)
        self.positions: dict[int, Position] = {}

    def restore(self, histories: TrainedHistories) -> None:
        """Give the users interactions before the first step."""
        for user in range(NUM_USERS):
            for first in range(0, NUM_BEFORE, SEGMENT_LEN):
                histories.fold(self._example(user, first, SEGMENT_LEN, 0))

    def poll(self, timeout_s: float) -> list[Example]:
        """One step's examples."""
        del timeout_s  # there are always examples
        users = self._rng.choice(NUM_USERS, self._users_a_step, replace=False)
        self._places[users] += 1
        return [self._example(user, self._places[user] - 1, 1, 1) for user in users.tolist()]

    def trained(self, step: PlanStep) -> None:
        """Positions are not needed here."""

    def close(self) -> None:
        """Nothing to close."""

    def _example(self, user: int, first: int, num: int, num_new: int) -> Example:
        rng, none = self._rng, np.empty(0, np.int64)
        self._number += 1
        popular = (self._num_items * rng.random(num) ** 3).astype(np.int64)  # a long tail, in which every item occurs
        return Example(
            user=str(user), partition=0, writer_epoch=1, number=self._number, segment=int(first) // SEGMENT_LEN,
            first=int(first) % SEGMENT_LEN, segment_len=SEGMENT_LEN, num_new=num_new, feedback_index=none,
            feedback_bits=np.empty(0, np.uint32),
            rows=rows_of(Interactions(
                (popular + 1) * 7919, rng.integers(1, 8, num).astype(np.uint32),
                10**12 + 1000 * np.arange(first, first + num),
                np.zeros(num, np.int64), np.full(num, np.nan, np.float32), np.zeros((num, 1), np.int64),
            )),
            session_hash=np.zeros(num, np.int64), action_ids=none, user_feature_hash=none, user_offset=0,
            user_index=0, applied_offset=0, resume_from_offset=0, newest_event_ms=0, newest_record_ms=0,
        )  # fmt: skip


class DiscardingWriter(WeightsWriter):
    """Leads epoch 0, and discards what it should send."""

    num_bytes = 0
    """The number of the last version."""

    def check_topic(self) -> None:
        """There is no topic."""

    def check_fence(self) -> None:
        """There is no other trainer."""

    def send_claim(self, *, released: bool = False) -> None:
        """Nobody asks."""

    def send_chunks(self, number: int, blob: Tensors) -> int:
        """Make the chunks, which takes time, and discard them."""
        del number
        self.num_bytes = sum(len(chunk) for chunk in blob.chunks(CONFIG.chunk_bytes))
        return 0

    def send_manifest(self, manifest: Manifest) -> None:
        """Drop it."""


class Leader(Publisher):
    """Leads at once."""

    def lead(self, *_: Any, **__: Any) -> list[Manifest]:
        """There was no trainer before."""
        self._writer.begin("bench", 0, 0)
        return []


def fill(trainer: Trainer, num_items: int) -> None:
    """Give every item a row, with a full neighbourhood in the memory."""
    learner = trainer.learner
    for start in range(0, num_items, 100_000):
        keys = np.arange(start + 1, min(num_items, start + 100_000) + 1) * 7919
        learner.items.insert(keys, 10**12, 0)
        learner.names.all.update((key, f"item {key}") for key in keys.tolist())
    fill_memory(learner, num_items)


def fill_memory(learner: Learner, num_items: int) -> None:
    """Give every row a full neighbourhood and some counts."""
    rng = np.random.default_rng(1)
    learner.memory.grow(num_items + 1)
    arrays, num = learner.memory.arrays, learner.items.num_rows
    for start in range(1, num, 100_000):
        part = slice(start, min(num, start + 100_000))
        shape = arrays.neighbour_row[part].shape
        arrays.neighbour_row[part] = rng.integers(1, num, shape)
        arrays.after[part], arrays.before[part] = rng.random(shape), rng.random(shape)
        arrays.direct[part] = rng.random(shape)
        arrays.weight[part] = rng.random(shape) - 0.5
        arrays.num_neighbours[part] = shape[1]
        met = counted(np.arange(part.start, part.stop))
        learner.frequency.add(*met)
        learner.popularity.learn(*met)
    arrays.seen[1:num] = arrays.heat[:, 1:num] = 1.0
    arrays.first[1:num] = arrays.last[1:num] = np.arange(1, num)
    arrays.clock[0] = num
    learner.rates.grow("item", num)
    learner.rates.arrays.item_VC[:num] = 1.0
    learner.rates.arrays.item_dirty_V[:num] = 0xFF
    for table in learner.tables.values():
        table.dirty[:] = 0xFF
    arrays.dirty[:num], arrays.moved[:num] = 0xFF, 0xFF


def turns(trainer: Trainer, is_over: Callable[[int], bool]) -> list[float]:
    """The milliseconds of each turn until the condition holds."""
    took_ms = list[float]()
    while not is_over(len(took_ms)):
        began_s = time.perf_counter()
        trainer.turn()
        took_ms.append(1000 * (time.perf_counter() - began_s))
    return took_ms


def waits(name: str, took_ms: list[float], alone_ms: float) -> list[Row]:
    """How much longer the turns took than an undisturbed one."""
    p99, most = float(np.percentile(took_ms, 99)), max(took_ms)
    note = f"{len(took_ms)} turns, median {np.median(took_ms):.1f}, p99 {p99:.1f}, longest {most:.1f} ms"
    return [row(f"{name}: p99 of a turn over the undisturbed median", p99 / alone_ms, "x", 2.0, note, most=True)]


def at_once(trainer: Trainer, folder: Path, alone_ms: float) -> list[Row]:
    """How long the training thread takes to do everything itself."""

    def checkpoint() -> None:
        (folder / "at-once").write_bytes(save_tensors({k: np.ascontiguousarray(v) for k, v in arrays().items()}))

    def arrays() -> dict[str, Any]:
        return learner_arrays(trainer.learner)

    rows = []
    for name, work in (
        ("checkpoint", checkpoint),
        ("base", lambda: weights_snapshot(trainer.learner, everything=True)),
    ):
        began_s = time.perf_counter()
        work()
        took_ms = 1000 * (time.perf_counter() - began_s)
        rows.append(row(f"a {name}, at once on the training thread", took_ms / alone_ms, "x", note=f"{took_ms:.0f} ms"))
    return rows


def measure(num_items: int, folder: Path) -> list[Row]:
    """The rows for one catalogue size."""
    kafka = KafkaConfig()
    writer = DiscardingWriter(kafka, CONFIG.chunk_bytes)
    publisher = Leader(kafka, CONFIG, threading.Event(), writer=writer)
    traffic = Traffic(num_items)
    trainer = Trainer(MODEL, CONFIG, lambda _: traffic, checkpoint_dir=folder / "kept", publisher=publisher)
    trainer.start()
    assert trainer.checkpoints is not None
    assert trainer.publication is not None
    saver, publication = trainer.checkpoints.saver, trainer.publication
    try:
        fill(trainer, num_items)
        tune_interpreter()
        label, rows = f"{num_items:,} items", list[Row]()

        def is_published(num: int) -> bool:
            return num > 0 and publisher.idle and not publication.is_collecting

        turns(trainer, is_published)  # the first base, and a warm-up
        alone = turns(trainer, lambda num: num == NUM_ALONE)
        alone_ms = float(np.median(alone))
        rows += [row(f"{label}: an undisturbed turn, median", alone_ms, "ms")]
        rows += waits(f"{label}: nothing", alone, alone_ms)

        def kept(name: str) -> None:
            began_s = time.perf_counter()
            saver.begin(trainer.learner)
            rows.extend(waits(f"{label}: {name}", turns(trainer, lambda _: saver.is_idle), alone_ms))
            newest = max((folder / "kept").glob("checkpoint-*"))
            num_bytes = sum(each.stat().st_size for each in newest.iterdir())
            note = f"{time.perf_counter() - began_s:.1f} s from its first slice"
            rows.append(row(f"{label}: {name}, size", num_bytes / 1e6, "MB", note=note))

        def published(name: str, *, whole: bool) -> None:
            began_s = time.perf_counter()
            if whole:
                publisher.need_base()
            publication.collect(trainer.learner, 0)
            rows.extend(waits(f"{label}: {name}", turns(trainer, is_published), alone_ms))
            note = f"{time.perf_counter() - began_s:.1f} s from its first slice to the last chunk"
            rows.append(row(f"{label}: {name}, size", writer.num_bytes / 1e6, "MB", note=note))

        kept("a whole checkpoint")
        kept("an increment")
        turns(trainer, lambda _: trainer.learner.num_interactions >= CONFIG.metric_window)
        kept("an increment of many steps")
        trainer.frozen = frozen = FrozenRival(COMPARED, trainer.checkpoints.folder)
        trainer.learner.scoring.evaluator.on_ranked = frozen.compare
        rows += waits(f"{label}: reading a frozen copy", turns(trainer, lambda _: frozen.step is not None), alone_ms)
        published("a base", whole=True)
        turns(trainer, lambda num: num == 30)
        published("a delta of 30 steps", whole=False)
        publisher.need_base()
        publication.collect(trainer.learner, 0)
        saver.abandon()
        kept("a whole checkpoint beside a base")
        turns(trainer, is_published)
        return rows + at_once(trainer, folder, alone_ms)
    finally:
        trainer.close()


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return measure(100_000 if quick else 1_000_000, Path(folder))
