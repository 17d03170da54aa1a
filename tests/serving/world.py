"""A small world for the server's tests: users' examples, a real learner, and its versions as records of the topic."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from model.config import ModelConfig
from model.probe import probe_outputs
from serving.versions.manager import WeightsManager
from trainer.checkpoint.snapshot import weights_snapshot
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from wire.example import Example, Interactions, rows_of
from wire.example_codec import encode_example
from wire.hashing import item_hash
from wire.weights import (
    CLAIM_HEADERS,
    CLAIM_KEY,
    MANIFEST_HEADERS,
    Headers,
    Manifest,
    Quality,
    Version,
    checksum,
    chunk_headers,
    decode_blob,
    encode_blob,
    encode_manifest,
    version_key,
)

Record = tuple[bytes, Headers, bytes]
KINDS = ("view", "click", "like")
MODEL = ModelConfig(
    kinds=KINDS, num_layers=2, model_width=16, num_heads=2, qk_width=8, value_width=8, item_width=17, max_context=12
)
TRAINER = TrainerConfig(seed=3, table_lr=0.3, dense_lr=1e-2)
START_MS = 1_700_000_000_000


def interactions(rng: np.random.Generator, num: int, num_items: int = 20, start_ms: int = START_MS) -> Interactions:
    """Random interactions."""
    return Interactions(
        np.array([item_hash(int(item)) for item in rng.integers(1, num_items + 1, num)], np.int64).reshape(num),
        rng.integers(1, 2 ** len(KINDS), num).astype(np.uint32),
        start_ms + np.cumsum(rng.integers(0, 60_000, num)),
        np.zeros(num, np.int64),
        np.full(num, np.nan, np.float32),
        np.zeros((num, 0), np.int64),
    )


def example(user: str, rows: Interactions, *, num_new: int = 0, number: int = 0, partition: int = 0,
            writer_epoch: int = 1, segment: int = 0, segment_len: int = 1024) -> Example:  # fmt: skip
    """An example of these interactions, in one segment."""
    none = np.empty(0, np.int64)
    newest = int(rows.timestamp_ms[-1]) if len(rows) else START_MS
    return Example(
        user=user, partition=partition, writer_epoch=writer_epoch, number=number, segment=segment,
        segment_len=segment_len, rows=rows_of(rows), num_new=num_new, feedback_index=none,
        feedback_bits=np.empty(0, np.uint32), session_hash=np.zeros(len(rows), np.int64), action_ids=none,
        user_feature_hash=none, user_offset=0, user_index=0, applied_offset=number, resume_from_offset=number + 1,
        newest_event_ms=newest, newest_record_ms=int(time.time() * 1000),
        names={item_hash(i): i for i in range(1, 21)} if number == 0 else {},
    )  # fmt: skip


def slice_of(rows: Interactions, start: int, stop: int | None) -> Interactions:
    """A slice of the interactions."""
    return Interactions(*(getattr(rows, name)[start:stop] for name in Interactions.__slots__))


@dataclass
class World:
    """Users with histories, and a learner that learns them step by step; each version is the next one."""

    seed: int = 0
    num_users: int = 6
    epoch: int = 1
    model: ModelConfig = MODEL
    learner: Learner = field(init=False)
    histories: dict[str, Interactions] = field(init=False)
    number: int = -1
    base_number: int = -1
    base_offset: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.learner = Learner(self.model, TRAINER)
        self.histories = {f"u{i}": interactions(self.rng, int(self.rng.integers(3, 30))) for i in range(self.num_users)}

    def examples(self, *, partition: int = 0) -> list[Example]:
        """Each user's newest example, with the last ``max_context`` interactions."""
        return [example(user, slice_of(rows, -self.model.max_context, None), number=number, partition=partition)
                for number, (user, rows) in enumerate(self.histories.items())]  # fmt: skip

    def learn(self) -> None:
        """One step: at first on everything, later on every user's last interactions again."""
        most = 2 if self.learner.num_steps else 1000
        self.learner.step([example(user, rows, num_new=min(most, len(rows))) for user, rows in self.histories.items()])

    def version(self, kind: str = "base") -> tuple[Manifest, bytes]:
        """The learner's present state, as the next version."""
        is_base, self.number = kind == "base", self.number + 1
        blob = encode_blob(weights_snapshot(self.learner, everything=is_base))
        self.base_number = self.number if is_base else self.base_number
        now_ms = int(time.time() * 1000)
        return Manifest(
            model_id="test", epoch=self.epoch, number=self.number, kind=kind,
            onto_number=-1 if is_base else self.number - 1, base_number=self.base_number, base_offset=self.base_offset,
            num_chunks=0, num_bytes=len(blob), checksum=checksum(blob), covered={0: self.number},
            covered_offsets={0: self.number}, newest_event_ms=START_MS,
            newest_record_ms=now_ms, num_interactions=self.learner.num_interactions, plan=[],
            model_config=self.model.as_dict(), created_ms=now_ms, metrics={},
            quality=Quality(probe=probe_outputs(self.learner.model)),
        ), blob  # fmt: skip

    def decoded(self, kind: str = "base") -> Version:
        """`version`, as a reader decodes it."""
        manifest, blob = self.version(kind)
        return Version(manifest, decode_blob(blob))

    def records(self, kind: str, next_offset: int, *, chunk_bytes: int = 4000) -> list[Record]:
        """Learn a little and return the next version's records; ``next_offset``: where the first one will be."""
        self.learn()
        self.base_offset = next_offset if kind == "base" else self.base_offset
        manifest, blob = self.version(kind)
        chunks = [blob[at : at + chunk_bytes] for at in range(0, len(blob), chunk_bytes)]
        manifest = msgspec.structs.replace(manifest, num_chunks=len(chunks))
        key = version_key(manifest.epoch, manifest.number)
        records: list[Record] = [(key, chunk_headers(index), chunk) for index, chunk in enumerate(chunks)]
        return [*records, (key, MANIFEST_HEADERS, encode_manifest(manifest))]


def claim(epoch: int) -> Record:
    """A trainer's claim of an epoch."""
    return CLAIM_KEY, CLAIM_HEADERS, b'{"epoch":%d,"claimant":"test"}' % epoch


def versions(world: World, num: int, *, base_every: int = 4) -> Iterator[Version]:
    """Versions in memory: a base now and then, deltas in between."""
    for index in range(num):
        world.learn()
        yield world.decoded("base" if index % base_every == 0 else "delta")


def encoded(examples: Sequence[Example]) -> list[bytes]:
    """The examples as encoded for the topic."""
    return [encode_example(each) for each in examples]


def manager_of(version: Version) -> WeightsManager:
    """A manager that answers from this (base) version."""
    manager = WeightsManager()
    manager.stage(version)
    manager.swap()
    return manager
