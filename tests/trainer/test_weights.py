"""Versions: a reader holds the learner's weights, bit for bit, or an older version of them; never a mix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors

from model.memory import Memory
from tests.trainer.samples import MODEL, TRAINER, World, assert_same_arrays
from trainer.checkpoint.snapshot import restore_published, weights_snapshot
from trainer.learner.step import Learner
from trainer.versions.weights import Weights
from wire.assembler import MAX_BEGUN, VersionAssembler
from wire.errors import VersionError
from wire.tensors import Tensors, arrays_of
from wire.weights import (
    CLAIM_HEADERS,
    CLAIM_KEY,
    MANIFEST_HEADERS,
    Claim,
    Headers,
    Manifest,
    Snapshot,
    TableRows,
    Version,
    blob_of,
    checksum,
    chunk_headers,
    decode_blob,
    decode_manifest,
    encode_blob,
    encode_manifest,
    version_key,
)

pytestmark = pytest.mark.usefixtures("one_thread")
Record = tuple[bytes | None, Headers, bytes | None]


def manifest(blob: bytes, num_chunks: int, number: int, kind: str, epoch: int = 1) -> Manifest:
    return Manifest(
        model_id="test", epoch=epoch, number=number, kind=kind, onto_number=number - 1 if kind == "delta" else -1,
        base_number=0, base_offset=0, num_chunks=num_chunks, num_bytes=len(blob),
        checksum=checksum(blob), covered={0: 7}, covered_offsets={0: 9}, newest_event_ms=1, newest_record_ms=2,
        num_interactions=3, plan=[[(0, 0, 7)]], model_config=MODEL.as_dict(), created_ms=4, metrics={"a": None},
    )  # fmt: skip


def records(snapshot: Snapshot, number: int, kind: str, epoch: int = 1, chunk_bytes: int = 3000) -> list[Record]:
    """A version as the topic's records."""
    blob = encode_blob(snapshot)
    chunks, key = list(blob_of(snapshot).chunks(chunk_bytes)), version_key(epoch, number)
    out: list[Record] = [(key, chunk_headers(index), bytes(chunk)) for index, chunk in enumerate(chunks)]
    return [*out, (key, MANIFEST_HEADERS, encode_manifest(manifest(blob, len(chunks), number, kind, epoch)))]


def small(value: float = 1.0) -> Snapshot:
    rows = TableRows(np.array([0, 5]), np.array([0, 1]), np.full((2, 3), value, np.float32), np.zeros(0, np.int64))
    return Snapshot({"w": np.full(2000, value, np.float32)}, {"items": rows}, {5: "five", 6: 6})


@dataclass
class Reader:
    """Follows the topic as a server does."""

    drops: list[str] = field(default_factory=list)
    weights: Weights | None = None
    taken: list[Version] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.assembler = VersionAssembler(on_drop=self.drops.append)

    def read(self, topic: Iterable[Record]) -> Reader:
        for record in topic:
            version = self.assembler.feed(*record)
            if version is None:
                continue
            self.taken.append(version)
            if self.weights is None:
                self.weights = Weights.from_base(version) if version.manifest.kind == "base" else None
            elif self.weights.accepts(version):
                self.weights = self.weights.apply(version)
        return self


def values_of(weights: Weights, learner: Learner) -> dict[str, Any]:
    """A reader's weights by key, and the names."""
    out: dict[str, Any] = {f"dense.{name}": array for name, array in sorted(weights.dense.items())}
    for name, table in sorted(weights.tables.items()):
        rows = np.flatnonzero(table.live)
        rows = rows[np.argsort(table.ids[rows])]
        out |= {f"{name}.ids": table.ids[rows], f"{name}.places": rows, f"{name}.rows": table.rows[rows]}
        assert len(table.ids) <= learner.tables[name].num_rows
    return out | memory_of(weights.memory)


def memory_of(memory: Memory) -> dict[str, Any]:
    """The part in use, row by row."""
    arrays, out = memory.arrays, {"memory.gain": memory.arrays.gain, "memory.clock": memory.arrays.clock}
    for row in np.flatnonzero(arrays.first >= 0).tolist():
        num = arrays.num_neighbours[row]
        for name in ("neighbour_row", "after", "before", "direct", "weight"):
            out[f"memory.{row}.{name}"] = getattr(arrays, name)[row, :num]
        counts = (arrays.seen[row], *arrays.heat[:, row], arrays.first[row], arrays.last[row])
        out[f"memory.{row}.counts"] = np.array(counts, np.float64)
    return out


def truth_of(learner: Learner) -> dict[str, Any]:
    """The learner's own weights, read without the code under test."""
    out = {f"dense.{name}": value.detach().numpy() for name, value in sorted(learner.model.named_parameters())}
    for name, table in sorted(learner.tables.items()):
        places = {int(key): int(table.lookup(np.array([key]))[0]) for key in table.map.ids_of_rows() if key}
        ids = np.array(sorted({0: 0, **places}), np.int64)
        rows = np.array([{0: 0, **places}[key] for key in ids.tolist()], np.int64)
        out |= {f"{name}.ids": ids, f"{name}.places": rows, f"{name}.rows": table.weight.numpy()[rows]}
    return out | memory_of(learner.memory)


def test_a_base_and_its_deltas_are_the_learners_weights_bit_for_bit() -> None:
    config = replace(TRAINER, evict_after_days=0.001, evict_every_steps=3, admit_after=2)
    learner, world, reader = Learner(MODEL, config), World(2, num_items=60), Reader()
    late, num_evicted = Reader(), 0
    for number in range(14):
        for _ in range(1 + number % 2):
            learner.step(world.examples(6))
        num_evicted += len(learner.items.tombstones)
        kind = "base" if number in (0, 9) else "delta"
        topic = records(weights_snapshot(learner, everything=kind == "base"), number, kind)
        for each in (reader, late) if number >= 5 else (reader,):
            each.read(topic)
        assert reader.weights is not None
        assert reader.weights.which == (1, number)
        assert_same_arrays(values_of(reader.weights, learner), truth_of(learner))
        assert reader.weights.names == learner.names.all
    assert num_evicted > 10  # otherwise tombstones were not tested
    assert late.weights is not None
    assert_same_arrays(values_of(late.weights, learner), truth_of(learner))
    assert reader.drops == late.drops == []


def test_a_trainer_learns_on_from_a_version_without_the_item_of_the_last_row() -> None:
    learner, world = Learner(MODEL, TRAINER), World(3)
    learner.step(world.examples(6))
    last = learner.items.num_rows - 1
    learner.remove_items(set(learner.items.keys_of(np.array([last])).tolist()))
    reader = Reader()
    reader.read(records(weights_snapshot(learner, everything=True), 0, "base"))
    started = Learner(MODEL, TRAINER)
    assert reader.weights is not None
    restore_published(started, reader.weights)
    assert started.memory.num_rows == started.items.num_rows == last + 1
    assert started.step(world.examples(6)).num_targets > 0


def without_tombstones(rows: TableRows) -> TableRows:
    return replace(rows, tombstones=rows.tombstones[:0])


def without_a_dirty_row(rows: TableRows) -> TableRows:
    return replace(rows, ids=rows.ids[:-1], rows=rows.rows[:-1], row_index=rows.row_index[:-1])


@pytest.mark.parametrize("forget", [without_tombstones, without_a_dirty_row])
def test_the_comparison_finds_a_delta_that_forgets(forget: Callable[[TableRows], TableRows]) -> None:
    config = replace(TRAINER, evict_after_days=0.001, evict_every_steps=2)
    learner, world, reader = Learner(MODEL, config), World(2, num_items=60), Reader()
    learner.step(world.examples(6))
    reader.read(records(weights_snapshot(learner, everything=True), 0, "base"))
    for number in range(1, 8):
        learner.step(world.examples(6))
        delta = weights_snapshot(learner, everything=False)
        less = replace(delta, tables={name: forget(rows) for name, rows in delta.tables.items()})
        reader.read(records(less, number, "delta"))
    assert reader.weights is not None
    with pytest.raises(AssertionError):
        assert_same_arrays(values_of(reader.weights, learner), truth_of(learner))


@pytest.mark.parametrize("field", ["epoch", "number", "num_chunks", "num_bytes", "base_offset", "first_step"])
@pytest.mark.parametrize("stated", [2**31, 2**53, 2**63 - 1, 2**64, 10**40, -(2**63)])
def test_a_manifest_may_state_any_number_and_is_dropped_at_once(field: str, stated: int) -> None:
    """No reader makes a list of so many chunks."""
    base, next_one = records(small(), 0, "base"), records(small(2), 1, "delta")
    key, headers, value = base[-1]
    assert value is not None
    said = re.sub(rb'"%b":-?[0-9]+' % field.encode(), b'"%b":%d' % (field.encode(), stated), value)
    assert said != value
    reader = Reader().read([*base[:-1], (key, headers, said), *base, *next_one])
    assert (len(reader.drops), [each.manifest.number for each in reader.taken]) == (1, [0, 1]), reader.drops


def test_a_blob_is_its_snapshot_again_and_always_the_same_bytes() -> None:
    snapshot = small(float("nan"))
    again = decode_blob(encode_blob(snapshot))
    assert encode_blob(again) == encode_blob(snapshot)
    assert again.names == snapshot.names
    np.testing.assert_array_equal(again.tables["items"].rows, snapshot.tables["items"].rows)


@pytest.mark.parametrize("header", [
    "something else", "[]", '{"x": 1}', '{"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
    '{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
    '{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [8, 4]}}',
    '{"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}', "[" * 100_000,
    '{"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', '{"names": {"dtype": "U8", "shape": "ab"}}',
])  # fmt: skip
def test_what_is_no_blob_is_refused(header: str) -> None:
    blob = len(header).to_bytes(8, "little") + header.encode() + bytes(8)
    for each in (blob, bytearray(blob), blob[:5], b""):
        with pytest.raises(VersionError, match="blob: expected safetensors"):
            decode_blob(each)


def test_the_arrays_of_a_blob_are_what_safetensors_reads() -> None:
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint16, np.uint8, np.bool_)
    arrays = {np.dtype(kind).name: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds}
    blob = b"".join(Tensors({**arrays, "none": np.zeros((0, 3), np.float32)}).parts)
    ours, theirs = arrays_of(blob), load_tensors(blob)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name])


@given(size=st.integers(0, 50), chunk=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_chunks_are_at_most_the_size_asked_for_and_add_up(size: int, chunk: int) -> None:
    tensors = Tensors({"x": np.arange(size, dtype=np.uint8)})
    chunks = list(tensors.chunks(chunk))
    assert b"".join(chunks) == b"".join(map(bytes, tensors.parts))
    assert len(chunks) >= 1
    assert max(map(len, chunks)) <= chunk


def test_a_chunk_within_an_array_is_not_a_copy() -> None:
    array = np.arange(100, dtype=np.uint8)
    chunks = list(Tensors({"x": array}).chunks(30))
    within = [chunk for chunk in chunks if isinstance(chunk, memoryview)]
    assert len(within) >= 2
    assert all(np.shares_memory(np.frombuffer(chunk, np.uint8), array) for chunk in within)


def test_a_manifest_is_itself_again() -> None:
    original = manifest(b"abc", 1, 3, "delta")
    assert decode_manifest(encode_manifest(original)) == original
    assert original.next_step == 1
    with pytest.raises(VersionError, match="manifest: expected JSON of a known form"):
        decode_manifest(b'{"epoch": 1}')


def damaged(topic: list[Record], what: str) -> list[Record]:
    chunk = topic[1]
    assert chunk[2] is not None
    flipped = bytearray(chunk[2])
    flipped[100] ^= 1
    return {
        "missing": [topic[0], *topic[2:]],
        "flipped": [topic[0], (chunk[0], chunk[1], bytes(flipped)), *topic[2:]],
        "shortened": [topic[0], (chunk[0], chunk[1], chunk[2][:-1]), *topic[2:]],
        "swapped": [(topic[0][0], chunk[1], topic[0][2]), (chunk[0], topic[0][1], chunk[2]), *topic[2:]],
        "late chunk": [*topic[:-2], topic[-1], topic[-2]],
        "broken manifest": [*topic[:-1], (topic[-1][0], MANIFEST_HEADERS, (topic[-1][2] or b"")[:-9])],
    }[what]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("missing", r"torn: chunks \[1\] of \d+ are missing"),
        ("flipped", "corrupt: expected"),
        ("shortened", "corrupt: expected"),
        ("swapped", "corrupt: expected"),
        ("late chunk", "torn: chunks"),
        ("broken manifest", "manifest: expected JSON of a known form"),
    ],
)
def test_a_damaged_version_is_dropped_with_the_reason_and_the_one_before_stays(what: str, reason: str) -> None:
    reader = Reader().read(records(small(1.0), 0, "base"))
    reader.read(damaged(records(small(2.0), 1, "base"), what))
    assert reader.weights is not None
    assert reader.weights.which == (1, 0)
    assert len(reader.drops) == 1
    assert re.search(reason, reader.drops[0])
    reader.read(records(small(3.0), 2, "base"))
    assert reader.weights.dense["w"][0] == 3.0


@pytest.mark.parametrize(
    "record",
    [
        (None, MANIFEST_HEADERS, b"{}"),
        (b"1/1", MANIFEST_HEADERS, None),
        (b"1/1", [], b"x"),
        (b"1/1", [("record", b"\xff")], b"x"),
        (b"x", chunk_headers(0), b"x"),
        (b"1/2/3", chunk_headers(0), b"x"),
        (b"1/1", [("record", b"chunk")], b"x"),
        (b"1/1", [("record", b"chunk"), ("chunk", b"one")], b"x"),
        (b"1/1", MANIFEST_HEADERS, b"[1]"),
        (CLAIM_KEY, CLAIM_HEADERS, b"{}"),
    ],
)
def test_foreign_records_are_dropped_and_named(record: Record) -> None:
    reader = Reader()
    reader.read([record, *records(small(), 0, "base")])
    assert len(reader.drops) == 1
    assert reader.weights is not None


def test_records_of_two_versions_may_interleave() -> None:
    first, second = records(small(1.0), 0, "base"), records(small(2.0), 1, "base")
    mixed = [*first[:2], second[0], *first[2:-1], *second[1:-1], first[-1], second[-1]]
    reader = Reader().read(mixed)
    assert [each.manifest.number for each in reader.taken] == [0, 1]
    assert reader.drops == []


def test_chunks_of_versions_that_never_come_do_not_pile_up() -> None:
    foreign = [(b"9/%d" % number, chunk_headers(0), bytes(1000)) for number in range(100)]
    reader = Reader().read([*foreign, *records(small(), 3, "base")])
    assert len(reader.assembler._chunks) == MAX_BEGUN - 1
    assert ["expected its manifest" in drop for drop in reader.drops] == [True] * (101 - MAX_BEGUN)
    assert [each.manifest.number for each in reader.taken] == [3]


def test_a_version_that_is_not_above_the_last_is_dropped() -> None:
    topic = records(small(1.0), 5, "base")
    reader = Reader().read([*topic, *topic, *records(small(2.0), 4, "base")])
    assert [each.manifest.number for each in reader.taken] == [5]
    assert ["expected one above (1, 5)" in drop for drop in reader.drops] == [True, True]


def test_a_claim_ends_the_epochs_below_it() -> None:
    claim: Record = (CLAIM_KEY, CLAIM_HEADERS, msgspec.json.encode(Claim(epoch=3, claimant="b")))
    old, new = records(small(1.0), 9, "base", epoch=2), records(small(2.0), 0, "base", epoch=3)
    reader = Reader().read([*old[:-1], claim, old[-1], *old, *new])
    assert [each.manifest.epoch for each in reader.taken] == [3]
    assert all("fenced off by a claim of epoch 3" in drop for drop in reader.drops)
    assert len(reader.drops) == 2


def version(number: int, kind: str, epoch: int = 1, value: float = 1.0) -> Version:
    return Version(manifest(b"", 1, number, kind, epoch), small(value))


def test_a_delta_applies_onto_its_version_alone() -> None:
    weights = Weights.from_base(version(3, "base"))
    assert weights.accepts(version(4, "delta"))
    for other in (version(5, "delta"), version(4, "delta", epoch=2), version(3, "delta"), version(2, "base")):
        assert not weights.accepts(other)
        with pytest.raises(VersionError, match=r"does not follow 1/3; wait for the next base"):
            weights.apply(other)
    for base in (version(9, "base"), version(0, "base", epoch=2)):
        assert weights.apply(base).which == (base.manifest.epoch, base.manifest.number)
    with pytest.raises(VersionError, match="expected a base, got a delta"):
        Weights.from_base(version(4, "delta"))


def test_applying_a_delta_leaves_the_weights_before_it_as_they_are() -> None:
    before = Weights.from_base(version(3, "base", value=1.0))
    after = before.apply(version(4, "delta", value=2.0))
    assert before.dense["w"][0] == before.tables["items"].rows[1, 0] == 1.0
    assert after.dense["w"][0] == after.tables["items"].rows[1, 0] == 2.0
