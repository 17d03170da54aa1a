"""Errors of the stream room.

::

    FileError           an action file that cannot be read
    ProducerError       records were not acknowledged
    MetricsPortTaken    the port of the metrics is in use
    BackfillError       the actions topic does not begin with the history that was to be there
    NameTaken           another worker lives under this one's name
"""

from __future__ import annotations

from wire.errors import HeadraceError


class FileError(HeadraceError):
    """An action file that is missing, of no known format, or damaged."""


class ProducerError(HeadraceError):
    """Records were not acknowledged by the broker."""


class MetricsPortTaken(HeadraceError, OSError):
    """The port of the metrics is in use."""


class BackfillError(HeadraceError):
    """The actions topic does not begin with the history that was to be there."""


class NameTaken(HeadraceError):
    """Another worker lives under this one's name (`stream.component`)."""
