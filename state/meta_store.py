"""What a database holds of its partition as a whole.

m               `state.meta.Meta`; absent until something has been applied, restored or claimed
t               ids of the topics that the offsets here belong to, separated by spaces
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rocksdict import WriteBatch

from state.database import Database
from state.meta import Meta, Position, Shape, decode_meta, encode_meta

_META = b"m"
_TOPIC_IDS = b"t"


class MetaStore:
    """The metadata of one partition. Changes go into the caller's write batch."""

    def __init__(self, db: Database, shape: Shape) -> None:
        self._db = db
        self._shape = shape
        self.now = Meta(shape)
        """As it was last read or written."""

    def load(self, path: Path) -> bool:
        """Read what is stored; whether there is anything. Raises `StoreCorrupt`, and `StoreMismatch` if it was written
        under another configuration."""
        stored = self._db.get(_META)
        if stored is not None:
            meta = decode_meta(stored, path)
            self._shape.check(meta.shape, path)
        self.now = Meta(self._shape) if stored is None else meta
        return stored is not None

    def put(self, batch: WriteBatch, position: Position, dead: Mapping[str, int], **changes: int) -> None:
        """Write this position; what is not in ``changes`` stays."""
        waiting = {
            name: changes.get(name, getattr(self.now, name))
            for name in ("outbox_first", "outbox_next", "relayed_number", "sequences_offset", "read_to")
        }
        self.now = Meta(self._shape, *position, **waiting, dead=dict(dead))
        batch.put(_META, encode_meta(self.now))

    @property
    def topic_ids(self) -> tuple[str, ...]:
        """The broker's ids of the topics; a single empty one if none were recorded."""
        return tuple((self._db.get(_TOPIC_IDS) or b"").decode().split(" "))

    def put_topic_ids(self, batch: WriteBatch, ids: tuple[str, ...]) -> None:
        """Record them."""
        batch.put(_TOPIC_IDS, " ".join(ids).encode())
