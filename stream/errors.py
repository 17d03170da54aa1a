"""Errors of the stream room.

::

    FileError           an action file cannot be read
    ProducerError       records were not acknowledged
    MetricsPortTaken    metrics cannot listen at their address
    BackfillError       the actions topic does not begin with the expected history
    NameTaken           another live worker has this one's name
    MigrationUnfinished  users are still being migrated to this deployment
"""

from __future__ import annotations

from wire.errors import HeadraceError


class FileError(HeadraceError):
    """An action file is missing, of unknown format, or damaged."""


class ProducerError(HeadraceError):
    """Records were not acknowledged by the broker."""


class MetricsPortTaken(HeadraceError, OSError):
    """Metrics cannot listen at their address."""


class BackfillError(HeadraceError):
    """The actions topic does not begin with the expected history."""


class NameTaken(HeadraceError):
    """Another live worker has this one's name (`stream.component`)."""


class MigrationUnfinished(HeadraceError):
    """Users are still being migrated to this deployment (`headrace repartition`)."""
