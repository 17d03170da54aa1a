"""Ctrl-C and SIGTERM, from the first moment of a process.

Importing takes seconds. A KeyboardInterrupt raised meanwhile is a traceback where nothing catches it yet, and is lost
where a library's compiled code does: the process then goes on, with half of a module. So a process that is interrupted
while it imports ends there; nothing is written by then. Once there is something to clear up (`clear_up_from_here`), it
ends after the import instead.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""The exit status of a command that ended by itself after Ctrl-C, as `headrace.command.run` gets it."""
_IMPORTING = "<frozen importlib._bootstrap>"
AGAIN_S = 0.02
"""How soon an interrupt that came during an import comes again."""
_received: list[int] = []
_has_begun: list[bool] = []


class _Interrupt(KeyboardInterrupt):
    """What the signals raise. After a KeyboardInterrupt itself has passed through an ``exec`` or ``eval`` of a text,
    Python ends by SIGINT, whatever caught it and whatever status was to be returned."""


def heed_interrupts(*more: signal.Signals) -> None:
    """Make SIGTERM, and ``more``, end a command as Ctrl-C does. The processes that run for long have handlers of their
    own, later. A signal that this process was started to ignore (as under ``nohup``) stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, *more):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


def clear_up_from_here() -> None:
    """Let no interrupt end the process before what it has begun is cleared up."""
    _has_begun.append(True)


def was_interrupted() -> bool:
    """Whether one of the signals has come."""
    return bool(_received)


def status_of_interrupt() -> int:
    """The exit status after a KeyboardInterrupt: 128 and the signal's number, as shells have it."""
    return 128 + (_received[-1] if _received else signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            if not _has_begun:
                os._exit(128 + number)
            signal.signal(signal.SIGALRM, lambda _, frame: _interrupt(number, frame))
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
            return
        frame = frame.f_back
    raise _Interrupt
