"""Errors of a partition's database.

::

    StoreError (a `wire.errors.HeadraceError`)
    ├── StoreLocked      another process holds the database
    ├── StoreFull        no space left (or a quota, or a file size limit)
    ├── StoreCorrupt     the database's own bytes are damaged
    ├── StoreMismatch    the database was written under another configuration
    └── StoreClosed      used after close, or after a write that failed
"""

from __future__ import annotations

from wire.errors import HeadraceError


class StoreError(HeadraceError):
    """A partition's database cannot be used."""


class StoreLocked(StoreError):
    """Another process (or another handle of this one) holds the database."""


class StoreFull(StoreError):
    """The write did not fit on the disk. None of it is visible."""


class StoreCorrupt(StoreError):
    """The database's bytes are damaged. Remove its folder: the worker restores it from the sequences topic."""


class StoreMismatch(StoreError):
    """The database was written under a configuration that yields different sequences."""


class StoreClosed(StoreError):
    """The store was closed, or a write failed and what is in memory is no longer what is on disk."""
