"""Where a worker keeps its partitions' databases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wire.checks import AT_LEAST_1, Folder, Limit, Number, Switch, Word, check_fields

STORE_LIMITS: dict[str, Limit] = {
    "path": Folder(),
    "fsync": Switch(),
    "backend": Word(("cpp", "python"), "cpp is the default, and several times as fast"),
    "max_cached_users": AT_LEAST_1,
    "block_cache_bytes": Number(1 << 20, whole=True, advice="33554432 is the default"),
    "write_buffer_bytes": Number(1 << 20, whole=True, advice="33554432 is the default"),
}


@dataclass(frozen=True)
class StoreConfig:
    """Where a worker keeps its partitions' databases, and how durably.

    Every batch goes through RocksDB's write-ahead log, so a killed process loses nothing. ``fsync`` also survives a
    power failure, at the cost of one disk flush per batch; without it, what a power failure destroys is restored from
    Kafka. Up to ``max_cached_users`` users of each partition stay decoded in memory (about 10 kB each at a context of
    200). ``backend``: what applies actions: the compiled kernels, or the Python code that defines what they do.
    """

    path: Path = Path("data/state")
    fsync: bool = False
    backend: str = "cpp"
    max_cached_users: int = 10_000
    block_cache_bytes: int = 32 << 20
    write_buffer_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        check_fields(self, "store", STORE_LIMITS)
