"""The lock that keeps a second worker of a deployment off a disk, and the disk's name."""

from __future__ import annotations

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from state.errors import StoreError, StoreLocked


@contextmanager
def alone_on(folder: Path, prefix: str) -> Iterator[str]:
    """Lock a disk for one worker of a deployment; yields the disk's name. Each database has a lock too, but two workers
    that shared the partitions would collide only when a partition moved. The kernel releases the lock when the
    process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / f"{prefix}.lock").open("a+")
    except OSError as error:
        raise StoreError(f"store.path: expected a writable folder, got {folder} ({error}); use another") from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLocked(f"{folder}: expected exclusive use, another worker holds it; stop that one") from error
        yield _name_of(held, folder)


def _name_of(held: TextIO, folder: Path) -> str:
    """The disk's name, which is stored in its lock file."""
    try:
        held.seek(0)
        disk = held.read().strip()
        if not disk:
            disk = uuid.uuid4().hex
            held.write(disk)
            held.flush()
    except OSError as error:
        with suppress(OSError):  # a failed write is tried once more
            held.close()
        raise StoreError(f"{folder}: expected free space, got {error.strerror}; free some, then start") from error
    return disk
