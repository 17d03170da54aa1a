"""Where a worker keeps its partitions' databases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wire.checks import expect


@dataclass(frozen=True)
class StoreConfig:
    """Where a worker keeps its partitions' databases, and how carefully.

    Every batch goes through RocksDB's write-ahead log, so a killed process loses nothing. ``fsync`` also survives a
    machine that loses power, at the price of one disk flush a batch; without it such a machine restores what it lost
    from Kafka. ``max_cached_users`` of each partition stay decoded in memory (about 10 kB each with 200 of context).
    """

    path: Path = Path("data/state")
    fsync: bool = False
    max_cached_users: int = 10_000
    block_cache_bytes: int = 32 << 20
    write_buffer_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        expect(
            self.max_cached_users >= 1, "max_cached_users", "at least 1", self.max_cached_users, "the default is 10000"
        )
        for key in ("block_cache_bytes", "write_buffer_bytes"):
            expect(getattr(self, key) >= 1 << 20, key, "at least 1 MiB", getattr(self, key), "the default is 33554432")
