"""What a command reads from and prints to: open, whatever it was started with, and of no consequence where only a
message cannot be printed."""

from __future__ import annotations

import io
import os
import select
import sys
from pathlib import Path
from typing import Any, TextIO


def prepare_streams() -> select.poll:
    """Make them ready. What is returned says (``poll(0)``) whether the reader of our pipe has gone
    (`headrace lag --json | head`), also once rich, which finds it gone, has put the null device in its place."""
    _open_missing()
    watch = select.poll()
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        watch.register(os.dup(sys.stdout.fileno()), 0)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale that has no dash ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _lenient(sys.stderr)
    return watch


def flush_output() -> OSError | None:
    """Print what is left. If that fails, returns why, and drops it: Python would otherwise try again at the end, and
    change the exit status."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _open_missing() -> None:
    """Open what this process was started without (``>&-``) as the null device. Otherwise the next file or socket takes
    that number, and what a library writes to stderr goes into a database."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            opened = Path(os.devnull).open(mode, errors="backslashreplace")  # noqa: SIM115 (as long as the process)
            os.set_inheritable(opened.fileno(), True)  # or a child would be started without it
            setattr(sys, name, opened)


class _LenientFile(io.FileIO):
    """A file that drops what cannot be written."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _lenient(stream: TextIO) -> TextIO:
    """The same stream, but a message that cannot be written (its reader has gone, the terminal is closed, the disk is
    full) ends no command, and changes no exit status."""
    raw = _LenientFile(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )
