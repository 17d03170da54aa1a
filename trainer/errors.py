"""The errors that stop a trainer."""

from __future__ import annotations

from wire.errors import HeadraceError

FAILURES = (ArithmeticError, ValueError, IndexError)
"""What a step may raise because of its examples: it is set aside (`trainer.set_aside`)."""


class TrainerError(HeadraceError):
    """Anything that stops the trainer. The message says what was expected, what came and what to do.

    TrainerError
    ├── SourceError          examples are missing, damaged or do not fit the model
    │   └── GapError         numbers are missing from the sequences topic
    ├── CheckpointError      a checkpoint cannot be written or read
    ├── JournalError         the plan of steps cannot be written or followed
    ├── UnsoundError         learning leaves numbers that are not finite
    ├── UnsoundVersionError  a version was not published, since its rows are not finite
    ├── ReporterError        the thread that reports lag and heartbeats has failed
    ├── RanksError           the processes that train together do not fit, or have lost each other
    └── FencedError          another trainer has taken over
    """


def in_words(failure: Exception) -> str:
    """What kind of failure it is, and its message."""
    return f"{type(failure).__name__} ({failure})"


class SourceError(TrainerError):
    """Examples are missing, damaged, or do not fit the model."""


class GapError(SourceError):
    """Outbox numbers of a partition are missing from the sequences topic."""


class CheckpointError(TrainerError):
    """A checkpoint could not be written, or none of those present can be read."""


class JournalError(TrainerError):
    """The plan of steps could not be written, or does not fit the checkpoint."""


class UnsoundError(TrainerError):
    """Learning leaves numbers that are not finite, and setting single steps aside does not help."""


class ReporterError(TrainerError):
    """The thread that reports lag and heartbeats has failed."""


class RanksError(TrainerError):
    """The processes that train together (torchrun) do not fit together, or have lost each other."""


class UnsoundVersionError(UnsoundError):
    """A version would have carried numbers that are not finite; the message says which."""


class FencedError(TrainerError):
    """Another trainer has claimed a higher epoch; this one must stop."""
