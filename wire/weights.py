"""A version of the weights on the wire: chunks, then a manifest. `wire.assembler` puts them together again.

Records of ``headrace.weights.v1`` (one partition, so they have one order):

========  ==============================  ===================  =========================================
record    key                             headers              value
========  ==============================  ===================  =========================================
claim     ``\\x00claim``                   ``record=claim``     JSON ``{"epoch", "claimant"}``: from here on
                                                               versions of lower epochs do not count
chunk     ``epoch/number``                ``record=chunk``,    a slice of the blob, at most 900 kB
                                          ``chunk=<index>``
manifest  ``epoch/number``                ``record=manifest``  JSON `Manifest`; written last
========  ==============================  ===================  =========================================

The blob is one safetensors file: ``dense.<name>``; for each table ``<table>.ids`` (U,) int64, ``<table>.row_index``
(U,) int64, ``<table>.rows`` (U, D) float16 or float32 and ``<table>.tombstones`` (N,) int64 ids that were evicted;
``memory.<name>`` and ``rates.<name>``, as `model.memory` and `model.rates` lay them out; and ``names`` (bytes of a JSON
list of ``[id, name]``). Instead of ``memory.weight``, a rounded version has ``memory.weight_steps`` (P, n) uint8: by
how many ``memory.weight_unit`` each weight differs from the version before (from zero in a base, or once the memory has
another width), as planes of bytes, lowest first, with the sign in the lowest bit. A **base** has everything; a
**delta** has all dense weights and the rows touched since version ``onto_number`` of the same epoch. Row 0 of a table
(id 0) stands for everything that has no row of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from wire.errors import CodecError, VersionError
from wire.json_value import Epoch, Whole, decode_json
from wire.tensors import Tensors, arrays_of

CLAIM_KEY = b"\x00claim"
Headers = list[tuple[str, bytes]]
PlanStep = list[tuple[Whole, Whole, Whole]]
"""One training step: (partition, first number, last number) in the order in which they were batched."""


TOPIC_ID = "topic id"
"""Key of `Manifest.source`: the broker's own id of the sequences topic, since a name can be reused."""


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How good a version is, measured by the trainer on predictions made before learning: over its newest
    ``num_targets`` targets HR@10 and, over all kinds, normalised entropy and calibration (predicted over actual); None
    if nothing was counted, or the stream is so new that its late kinds have not come. ``probe``: the weights'
    outputs for the fixed inputs of `model.probe`."""

    num_targets: Whole = 0
    hr10: float | None = None
    popular_hr10: float | None = None
    """HR@10, over the same targets, of the most popular items: it moves with the world, whatever the model does."""
    ne: float | None = None
    calibration: float | None = None
    probe: list[float] = []
    window: Whole = 0
    """The most targets that are counted (``trainer.metric_window``); 0 in versions of earlier builds."""

    def says_enough(self, min_targets: int) -> bool:
        """Whether it is measured on so many targets, or on a whole window that is shorter."""
        return self.num_targets >= self.enough(min_targets)

    def enough(self, min_targets: int) -> int:
        """How many targets are enough."""
        return min(min_targets, self.window or min_targets)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a version (see the module's docstring). Times are in ms since the epoch."""

    model_id: str
    epoch: Epoch
    number: Whole
    kind: str
    onto_number: Whole
    base_number: Whole
    base_offset: Whole
    num_chunks: Whole
    num_bytes: Whole
    checksum: str
    covered: dict[Whole, Whole]
    covered_offsets: dict[Whole, Whole]
    newest_event_ms: int
    newest_record_ms: int
    num_interactions: Whole
    """New interactions in the steps of the whole lineage: learned, or with `trainer.feedback` "wait" at least taken."""
    plan: list[PlanStep]
    model_config: dict[str, Any]
    created_ms: Whole
    metrics: dict[str, Any]
    num_feedback: Whole = 0
    """Pieces of feedback to earlier interactions in the steps of the whole lineage."""
    lineage: str = ""
    first_step: Whole = 0
    """Number of the first step in ``plan``; the steps of a lineage are numbered from 0 without gaps."""
    learning: dict[str, Any] = {}
    """The trainer's own settings that determine the weights; a replay must use the same."""
    source: dict[str, Any] = {}
    """Where the examples came from: a topic's identity. In another topic, the same numbers mean other examples."""
    positions: dict[Whole, dict[str, Whole]] = {}
    """Where the trainer would continue reading, by partition (`trainer.sources.source.Position`)."""
    parent: str = ""
    """The lineage whose weights at ``first_step`` this one began from (``--from-published``)."""
    set_aside: list[Whole] = []
    """Steps of ``plan`` that taught the model nothing, because they made weights non-finite."""
    quality: Quality = Quality()
    rounding: dict[str, float] = {}
    """The largest changes that rounding made to this version (`trainer.versions.rounding`); empty if it is exact."""

    @property
    def which(self) -> tuple[int, int]:
        """(epoch, number)."""
        return self.epoch, self.number

    @property
    def next_step(self) -> int:
        """The number of the first step that this version does not contain."""
        return self.first_step + len(self.plan)

    def follows(self, last: Manifest | None) -> bool:
        """Whether a reader that holds ``last`` can take this version: a newer base, or the delta onto exactly that one.

        A reader that holds nothing (None) takes a base.
        """
        if last is None:
            return self.kind == "base"
        is_newer = (self.epoch, self.number) > (last.epoch, last.number)
        return is_newer and (self.kind == "base" or (self.epoch, self.onto_number) == (last.epoch, last.number))


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A trainer process takes an epoch, or (``released``) says that it has ended and gives it up."""

    epoch: Epoch
    claimant: str
    released: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TableRows:
    """Rows of one table: ``ids`` and ``row_index`` (U,) int64, ``rows`` (U, D); ``tombstones`` (N,) int64 ids."""

    ids: NDArray[np.int64]
    row_index: NDArray[np.int64]
    rows: NDArray[np.floating[Any]]
    tombstones: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What goes into a blob."""

    dense: dict[str, NDArray[np.floating[Any]]]
    tables: dict[str, TableRows]
    names: dict[int, str | int]
    memory: dict[str, NDArray[Any]] = field(default_factory=dict)
    rates: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A complete, verified version as a reader gets it."""

    manifest: Manifest
    snapshot: Snapshot


def blob_of(snapshot: Snapshot, names: NDArray[np.uint8] | None = None) -> Tensors:
    """`Snapshot` → its blob, whose arrays are the snapshot's own.

    ``names``: the JSON of a list of ``[id, name]`` pairs, where the snapshot has none; of two for an id the later one
    counts.
    """
    tensors: dict[str, NDArray[Any]] = {f"dense.{name}": array for name, array in snapshot.dense.items()}
    for table, rows in snapshot.tables.items():
        for part in ("ids", "row_index", "rows", "tombstones"):
            tensors[f"{table}.{part}"] = getattr(rows, part)
    for part, arrays in (("memory", snapshot.memory), ("rates", snapshot.rates)):
        tensors |= {f"{part}.{name}": array for name, array in arrays.items()}
    if names is None:
        text = json.dumps(sorted(snapshot.names.items()), ensure_ascii=False, separators=(",", ":")).encode()
        names = np.frombuffer(text, np.uint8)
    tensors["names"] = names
    return Tensors(tensors)


def encode_blob(snapshot: Snapshot) -> bytes:
    """`Snapshot` → safetensors bytes; the same snapshot always gives the same bytes."""
    return b"".join(blob_of(snapshot).parts)


def decode_blob(blob: bytes | bytearray) -> Snapshot:
    """The inverse of `encode_blob`; arrays are views of the blob. Raises `VersionError` on bytes that are not one."""
    try:
        tensors = arrays_of(blob)
        names = decode_json(tensors.pop("names").tobytes(), _names_decoder)
    except (CodecError, KeyError, ValueError) as error:
        raise VersionError(f"blob: expected safetensors with names, got {len(blob)} other bytes ({error})") from error
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = array
    dense, memory, rates = (parts.pop(part, {}) for part in ("dense", "memory", "rates"))
    tables = {table: _table_rows(arrays) for table, arrays in sorted(parts.items())}
    return Snapshot(dense, tables, dict(names), memory, rates)


def _table_rows(arrays: dict[str, NDArray[Any]]) -> TableRows:
    rows = arrays["rows"].astype(np.float32, copy=False)
    return TableRows(arrays["ids"], arrays["row_index"], rows, arrays["tombstones"])


def checksum(blob: bytes | bytearray) -> str:
    """xxh3-128 of the blob, as hex."""
    return xxhash.xxh3_128_hexdigest(blob)


def version_key(epoch: int, number: int) -> bytes:
    """Kafka key of a version's records."""
    return f"{epoch}/{number}".encode()


def chunk_headers(index: int) -> Headers:
    """Headers of the chunk with this index."""
    return [("record", b"chunk"), ("chunk", str(index).encode())]


MANIFEST_HEADERS: Headers = [("record", b"manifest")]
CLAIM_HEADERS: Headers = [("record", b"claim")]


_manifest_decoder, _claim_decoder = msgspec.json.Decoder(Manifest), msgspec.json.Decoder(Claim)
_names_decoder = msgspec.json.Decoder(list[tuple[int, str | int]])


def encode_manifest(manifest: Manifest) -> bytes:
    """`Manifest` → JSON."""
    return msgspec.json.encode(manifest)


def decode_manifest(value: bytes | None) -> Manifest:
    """JSON → `Manifest`; raises `VersionError`."""
    try:
        return decode_json(value, _manifest_decoder)
    except CodecError as error:
        raise VersionError(f"manifest: {error}") from error


def decode_claim(value: bytes | None) -> Claim:
    """JSON → `Claim`; raises `CodecError`."""
    return decode_json(value, _claim_decoder)


def record_kind(headers: Iterable[tuple[str, bytes]]) -> str:
    """``chunk``, ``manifest``, ``claim``, or an empty string for any other record."""
    return (dict(headers).get("record") or b"").decode(errors="replace")  # Kafka has headers without a value


def manifest_of(record: Any) -> Manifest | None:
    """The manifest in a Kafka record; None if it has no readable one."""
    if record_kind(record.headers) != "manifest":
        return None
    try:
        return decode_manifest(record.value or b"")
    except VersionError:
        return None


def claim_of(record: Any) -> Claim | None:
    """The claim in a Kafka record; None if it has no readable one."""
    if record_kind(record.headers) != "claim":
        return None
    try:
        return decode_claim(record.value)
    except CodecError:
        return None
