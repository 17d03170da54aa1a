"""What a server gets in measurements: users with full histories, and an endless series of versions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from model.config import ModelConfig
from serving.users.histories import Histories
from trainer.checkpoint.snapshot import weights_snapshot
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from wire.example import Example, Interactions, rows_of
from wire.example_codec import encode_example
from wire.hashing import item_hash
from wire.weights import Manifest, Version

NUM_USERS, NUM_INTERACTIONS, NUM_DIRTY = 200, 200, 1000
START_MS = 1_700_000_000_000
NOW_MS = START_MS + 10**9


def examples(num_items: int, num_new: int = 0) -> Iterator[Example]:
    """Users with full histories, of which the last ``num_new`` interactions are new."""
    rng, none = np.random.default_rng(0), np.empty(0, np.int64)
    hashes = np.array([item_hash(item) for item in range(num_items)], np.int64)
    for number in range(NUM_USERS):
        rows = Interactions(
            rng.choice(hashes, NUM_INTERACTIONS), rng.integers(1, 8, NUM_INTERACTIONS).astype(np.uint32),
            START_MS + np.cumsum(rng.integers(0, 600_000, NUM_INTERACTIONS)), np.zeros(NUM_INTERACTIONS, np.int64),
            np.full(NUM_INTERACTIONS, np.nan, np.float32), np.zeros((NUM_INTERACTIONS, 0), np.int64),
        )  # fmt: skip
        yield Example(
            user=f"u{number}", partition=0, writer_epoch=1, number=number, segment=0, segment_len=NUM_INTERACTIONS,
            rows=rows_of(rows), num_new=num_new, feedback_index=none, feedback_bits=np.empty(0, np.uint32),
            session_hash=np.zeros(NUM_INTERACTIONS, np.int64), action_ids=none, user_feature_hash=none, user_offset=0,
            user_index=0, applied_offset=0, resume_from_offset=1, newest_event_ms=START_MS, newest_record_ms=START_MS,
        )  # fmt: skip


def histories(num_items: int) -> Histories:
    """Those users' histories, as a server keeps them."""
    kept = Histories(10**9)
    for example in examples(num_items):
        kept.feed(0, encode_example(example))
    return kept


def versions(num_items: int, *, taught: bool = False, model: ModelConfig | None = None) -> Iterator[Version]:
    """A base, then an endless series of deltas of `NUM_DIRTY` rows. ``taught``: the base has learned every history
    once."""
    model, rng = model or ModelConfig(), np.random.default_rng(1)
    learner = Learner(model, TrainerConfig())
    hashes = np.array([item_hash(item) for item in range(num_items)], np.int64)
    learner.items.insert(hashes, START_MS, 0)
    learner.memory.grow(learner.items.num_rows)
    if taught:
        new = list(examples(num_items, num_new=NUM_INTERACTIONS))
        for at in range(0, len(new), 10):
            learner.step(new[at : at + 10])
    learner.names.all = dict(zip(hashes.tolist(), range(num_items), strict=True))
    for number in range(10**9):
        manifest = Manifest(
            model_id="bench", epoch=1, number=number, kind="delta" if number else "base", onto_number=number - 1,
            base_number=0, base_offset=0, num_chunks=1, num_bytes=0, checksum="", covered={},
            covered_offsets={}, newest_event_ms=START_MS, newest_record_ms=START_MS, num_interactions=0, plan=[],
            model_config=model.as_dict(), created_ms=START_MS, metrics={},
        )  # fmt: skip
        yield Version(manifest, weights_snapshot(learner, everything=number == 0))
        for parameter in learner.model.parameters():  # as training steps would do, so that nothing old can be reused
            parameter.data += 0.01 * parameter.data.std(correction=0) * torch.randn(parameter.shape)
        learner.items.dirty[rng.choice(num_items, min(NUM_DIRTY, num_items), replace=False) + 1] = True
