"""RocksDB as this room uses it: bytes in, bytes out, one write batch at a time, errors that say what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from rocksdict import BlockBasedOptions, Cache, DBRecoveryMode, Options, Rdict, WriteBatch, WriteOptions

from state.config import StoreConfig
from state.errors import StoreClosed, StoreCorrupt, StoreError, StoreFull, StoreLocked

_LOCKED = ("lock hold", "lock file")
_FULL = ("No space left", "File too large", "Disk quota", "space limit")
_CORRUPT = ("Corruption", "checksum", "corrupted", "No such file")

LOG_BYTES = 1 << 20
"""Of RocksDB's LOG, of which two are kept: it notes each flush and compaction, so it grows as long as a worker runs."""
TOMBSTONES = 1000, 500
"""A file in which, of this many keys in a row, this many are tombstones is compacted soon."""


class Database:
    """One RocksDB folder, to be opened with `open`. A write is applied as a whole or raises; after a failed one, only
    `close` works."""

    def __init__(self, path: Path, config: StoreConfig) -> None:
        self.path = path
        self._wiped = path.with_name(f"{path.name}.wiped")
        self._config = config
        self._sync = WriteOptions()
        self._sync.sync = config.fsync
        self._db: Rdict | None = None

    def open(self) -> None:
        """Open the folder; create it if necessary. Raises `StoreError`."""
        try:
            if self._wiped.exists():
                shutil.rmtree(self._wiped)
            self.path.mkdir(parents=True, exist_ok=True)
            self._db = Rdict(str(self.path), _options(self._config))
        except OSError as error:
            raise StoreError(f"{self.path}: expected a folder to keep state in, got {error}; set store.path") from None
        except Exception as error:  # noqa: BLE001
            self._raise(error)

    def require_open(self) -> None:
        """Raise `StoreClosed` after `close`, or after a write that failed."""
        self._live()

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        try:
            value: bytes | None = self._live().get(key)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - the binding raises nothing more precise
            self._raise(error)
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of ``keys``."""
        try:
            values: list[bytes | None] = self._live().get(list(keys))
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001
            self._raise(error)
        return values

    def under(self, prefix: bytes, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Every (key, value) whose key starts with ``prefix``, in key order; ``start``: from that key on."""
        try:
            for key, value in self._live().items(from_key=start or prefix):
                if not key.startswith(prefix):
                    return
                yield key, value
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001
            self._raise(error)

    def begin_flush(self) -> None:
        """Have what is in memory written to a file, which takes place beside what comes next."""
        try:
            self._live().flush(wait=False)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001
            self._raise(error)

    def write(self, batch: WriteBatch) -> None:
        """Write a batch, all of it or nothing (`StoreConfig.fsync` says how durably)."""
        try:
            self._live().write(batch, write_opt=self._sync)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001
            self.close()
            self._raise(error)

    def wipe(self) -> None:
        """Remove everything and start empty. Killed on the way, it leaves an empty database, or the old one: RocksDB
        refuses a folder of which only some files are left."""
        self.close()
        self.path.rename(self._wiped)
        self.open()

    def close(self) -> None:
        """Release the folder. Idempotent. Writes are in the log already, so a failing flush does not matter."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(Exception):
                db.close()

    def _live(self) -> Rdict:
        if self._db is None:
            raise StoreClosed(f"{self.path}: expected an open store, it was closed or a write failed; open it again")
        return self._db

    def _raise(self, error: Exception) -> NoReturn:
        text, path = str(error), self.path
        if any(mark in text for mark in _LOCKED):
            raise StoreLocked(f"{path}: expected exclusive use, another worker holds it; stop that one") from error
        if any(mark in text for mark in _FULL):
            raise StoreFull(f"{path}: expected free space, got {text!r}; free some, then start again") from error
        if any(mark in text for mark in _CORRUPT):
            message = f"{path}: expected intact files, got {text!r}; remove the folder: it will be restored from Kafka"
            raise StoreCorrupt(message) from error
        if "Too many open files" in text:
            raise StoreError(f"{path}: expected to open all files, got {text!r}; raise ulimit -n") from error
        raise StoreError(f"{path}: expected RocksDB to work, got {text!r}; see {path / 'LOG'}") from error


def start_threads(folder: Path) -> None:
    """Have RocksDB start its threads, which all databases of a process share. It would start them for the first one,
    and it aborts the process where the system refuses them then. Raises `StoreError` if the folder cannot be used."""
    try:
        with TemporaryDirectory(prefix=".threads-", dir=folder, ignore_cleanup_errors=True) as empty:
            database = Database(Path(empty) / "none", StoreConfig())
            database.open()
            database.close()
    except OSError as error:
        raise StoreError(f"store.path: expected a writable folder, got {folder} ({error}); use another") from error


def _options(config: StoreConfig) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    # A torn tail of the log means a crash; everything before it is a consistent earlier state.
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_write_buffer_size(config.write_buffer_bytes)
    options.set_max_file_opening_threads(1)  # without a thread that the system may refuse: RocksDB aborts the process
    options.set_max_log_file_size(LOG_BYTES)
    options.set_keep_log_file_num(2)
    # Where most keys are tombstones, a reader would stand among them until RocksDB has another reason to compact.
    options.add_compact_on_deletion_collector_factory(*TOMBSTONES, 0.5)
    table = BlockBasedOptions()
    table.set_block_cache(Cache(config.block_cache_bytes))
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    return options
