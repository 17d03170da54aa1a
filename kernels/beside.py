"""A thread that runs a compiled function beside the interpreter, without ever holding it.

A thread of Python's would have to be given the interpreter at its beginning and at its end, by a thread that makes a
call every few microseconds.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from ctypes import Structure, byref, c_void_p, cast
from typing import Any

from kernels.compiled import baseline


class Beside:
    """Runs one function at a time. The thread is there from the first one on.

    Raises `KernelUnavailable` without compiled kernels.
    """

    def __init__(self) -> None:
        self._beside = baseline("headrace_beside_new", result=c_void_p)()
        if not self._beside:
            raise MemoryError("no room for a thread")
        weakref.finalize(
            self, _delete, baseline("headrace_beside_delete", c_void_p, result=None), self._beside, os.getpid()
        )
        self._held: Any = None
        self._status: int | None = None
        """What the function has returned that could not be given to a thread."""

    def start(self, function: Any, call: Structure, held: Any) -> None:
        """Begin ``function(call)``, of a function of the library that takes one pointer. ``held``: what the function
        reads and writes, kept until `wait`. What was begun before, in a step that has failed since, is waited for.

        If the system gives no thread, the function runs here, before this returns.
        """
        if self._held is not None:
            self.wait()
        begin = baseline("headrace_beside_start", *[c_void_p] * 3)
        has_none = begin(self._beside, cast(function, c_void_p), byref(call))
        self._status = function(byref(call)) if has_none else None
        self._held = call, held

    def wait(self) -> int:
        """The status that the function has returned, once it has. If the thread has not begun, because no processor was
        free, the function runs here."""
        wait = baseline("headrace_beside_wait", c_void_p)
        status: int = wait(self._beside) if self._status is None else self._status
        self._held = None
        return status


def _delete(delete: Callable[[int], None], beside: int, process: int) -> None:
    """In a fork nothing: its copy has no thread that could be waited for."""
    if os.getpid() == process:
        delete(beside)
