"""How a reader of the weights topic assembles versions from their records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from wire.errors import CodecError, VersionError
from wire.weights import Manifest, Snapshot, Version, checksum, decode_blob, decode_claim, decode_manifest, record_kind

logger = logging.getLogger(__name__)
MAX_BEGUN = 8
"""So many versions may be incomplete at a time. A trainer completes one before it begins the next, and the next trainer
takes a higher epoch; chunks of versions that never come would fill the memory."""

NONE = (-1, -1)
"""Before every version."""


@dataclass(slots=True)
class VersionAssembler:
    """Assembles versions from records in log order; yields only complete, verified ones, increasing in (epoch, number).

    Others (torn, corrupt, older than the last one, of a fenced epoch) are dropped, and the reason goes to ``on_drop``.
    Deltas are yielded whether or not the reader holds what they build on (`Manifest.follows`).
    """

    on_drop: Callable[[str], None] = field(default=logger.warning)
    epoch_floor: int = 0
    last: tuple[int, int] = NONE
    held: tuple[int, int] = NONE
    """The version that a reader holds who starts before it: those up to it are passed over, and not told of."""
    _chunks: dict[tuple[int, int], dict[int, bytes]] = field(default_factory=dict)

    @property
    def begun(self) -> Collection[tuple[int, int]]:
        """The versions of which there are chunks, and no manifest yet."""
        return self._chunks.keys()

    def feed(self, key: bytes | None, headers: Iterable[tuple[str, bytes]], value: bytes | None) -> Version | None:
        """One record of the topic; returns the version that it completes, if any."""
        kind = record_kind(headers)
        if key is None or value is None or kind not in ("claim", "chunk", "manifest"):
            self.on_drop(f"weights record: expected a claim, chunk or manifest, got key {key!r}; it is skipped")
            return None
        if kind == "claim":
            self._raise_floor(value)
            return None
        try:
            if kind == "chunk":
                self._keep_chunk(key, headers, self._kept(value))
                return None
            manifest = decode_manifest(value)
            return self._complete(manifest) if manifest.which > self.held else None
        except (VersionError, ValueError, KeyError, TypeError) as error:
            self.on_drop(f"version {key!r} dropped: {error}")
            return None

    def _raise_floor(self, value: bytes) -> None:
        try:
            claim = decode_claim(value)
        except CodecError as error:
            self.on_drop(f"claim dropped: {error}")
            return
        self.epoch_floor = max(self.epoch_floor, claim.epoch)
        self._chunks = {which: chunks for which, chunks in self._chunks.items() if which[0] >= self.epoch_floor}

    def _keep_chunk(self, key: bytes, headers: Iterable[tuple[str, bytes]], value: bytes) -> None:
        epoch, number = (int(part) for part in key.split(b"/"))
        if epoch >= self.epoch_floor and (epoch, number) > self.last:
            self._chunks.setdefault((epoch, number), {})[int(dict(headers)["chunk"])] = value
            if len(self._chunks) > MAX_BEGUN:
                forgotten = next(iter(self._chunks))
                del self._chunks[forgotten]
                self.on_drop(f"chunks of version {forgotten}: expected its manifest, got those of {MAX_BEGUN} others")

    def _complete(self, manifest: Manifest) -> Version | None:
        which = (manifest.epoch, manifest.number)
        if manifest.epoch < self.epoch_floor:
            raise VersionError(f"epoch {manifest.epoch} was fenced off by a claim of epoch {self.epoch_floor}")
        if which <= self.last:
            raise VersionError(f"expected one above {self.last}")
        chunks = self._chunks.get(which, {})
        # No more than five are looked for: a manifest may state any number.
        missing = list(islice((index for index in range(manifest.num_chunks) if index not in chunks), 5))
        if missing:
            raise VersionError(f"torn: chunks {missing} of {manifest.num_chunks} are missing")
        version = Version(manifest, self._content(manifest, chunks))
        self.last = which
        self._chunks = {other: kept for other, kept in self._chunks.items() if other > which}
        return version

    def _kept(self, chunk: bytes) -> bytes:
        """What to keep of a chunk until its manifest comes."""
        return chunk

    def _content(self, manifest: Manifest, chunks: Mapping[int, bytes]) -> Snapshot:
        """What a version's chunks hold. Raises `VersionError` if they are not what the manifest says."""
        blob = bytearray().join(chunks[index] for index in range(manifest.num_chunks))
        if len(blob) != manifest.num_bytes or checksum(blob) != manifest.checksum:
            raise VersionError(
                f"corrupt: expected {manifest.num_bytes} bytes with checksum {manifest.checksum}, got "
                f"{len(blob)} with {checksum(blob)}"
            )
        return decode_blob(blob)


@dataclass(slots=True)
class ManifestAssembler(VersionAssembler):
    """For who wants to know which versions there are: yields the same ones, without their content, and also what is
    corrupt, since it keeps no chunk's bytes."""

    def _kept(self, chunk: bytes) -> bytes:
        del chunk
        return b""

    def _content(self, manifest: Manifest, chunks: Mapping[int, bytes]) -> Snapshot:
        del manifest, chunks
        return Snapshot({}, {}, {})
