"""Every error of this room.

::

    StateError
    ├── ConfigError (also ValueError)   a configuration value that cannot be
    ├── CodecError (also ValueError)    bytes that are no example
    ├── FileError                       an action file that cannot be read
    └── StoreError
        ├── StoreLocked                 another process holds the database
        ├── StoreFull                   no space left (or a quota, or a file size limit)
        ├── StoreCorrupt                the database's own bytes are damaged
        ├── StoreMismatch               the database was written under another configuration
        └── StoreClosed                 used after close, or after a write that failed
"""

from __future__ import annotations


class StateError(Exception):
    """Base of every error raised by ``state``."""


class ConfigError(StateError, ValueError):
    """``key: expected X, got Y, do Z``."""

    def __init__(self, key: str, expected: str, got: object, advice: str) -> None:
        super().__init__(f"{key}: expected {expected}, got {got!r}; {advice}")
        self.key = key


class CodecError(StateError, ValueError):
    """Bytes that are not an example of a layout that this build reads."""


class FileError(StateError):
    """An action file that is missing, or of no known format, or damaged."""


class StoreError(StateError):
    """A partition's database cannot be used."""


class StoreLocked(StoreError):
    """Another process (or another handle of this one) holds the database."""


class StoreFull(StoreError):
    """The write did not fit on the disk. Nothing of it is visible."""


class StoreCorrupt(StoreError):
    """The database's bytes are damaged. Remove its folder: the worker restores it from the sequences topic."""


class StoreMismatch(StoreError):
    """The database was written under a configuration that gives other sequences."""


class StoreClosed(StoreError):
    """The store was closed, or a write failed and what is in memory is no longer what is on disk."""
