"""The library of compiled C++ kernels, loaded without torch (`kernels.library` has what needs torch).

`python -m kernels.build` makes ``kernels/build/libheadrace_kernels.so``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.sources import SOURCES, digest

LIBRARY_PATH = Path(__file__).parent / "build" / "libheadrace_kernels.so"

_DATA_AT = object.__basicsize__
"""Where the object of a NumPy array has the address of its data: right behind the head that every object has."""
_IS_CONTIGUOUS = attrgetter("flags.c_contiguous")


class KernelUnavailable(RuntimeError):
    """The requested version of an op cannot run here; the message says what to do."""


@cache
def load() -> ctypes.CDLL:
    """The shared library. Raises `KernelUnavailable` if it is missing, damaged or built from other sources."""
    return open_library(LIBRARY_PATH)


def open_library(path: Path) -> ctypes.CDLL:
    """The shared library at ``path``, checked. Raises `KernelUnavailable`."""
    if not path.exists():
        raise KernelUnavailable(
            f"expected the compiled kernels at {path}, found nothing; run `python -m kernels.build` "
            "(needs g++), or ask for backend='reference'"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelUnavailable(
            f"the compiled kernels at {path} do not load ({error}); run `python -m kernels.build --force`"
        ) from error
    if SOURCES.is_dir() and _built_from(library) != digest():
        raise KernelUnavailable(
            f"the compiled kernels at {path} were built from other sources than {SOURCES} has; "
            "run `python -m kernels.build`"
        )
    return library


def _built_from(library: ctypes.CDLL) -> str:
    """The digest of its sources; empty for a library built before there were digests."""
    try:
        ask = library.headrace_sources
    except AttributeError:
        return ""
    ask.restype = ctypes.c_char_p
    answer: bytes = ask()
    return answer.decode()


@cache
def baseline(name: str, *arguments: Any, result: Any = ctypes.c_int) -> Any:
    """A function that is compiled only once, for any processor. ``arguments``, ``result``: its types, for ctypes."""
    try:
        found = load()[name]  # an object of its own, so that no other caller's types are changed
    except AttributeError:
        raise KernelUnavailable(
            f"the compiled kernels have no {name!r}; run `python -m kernels.build --force`"
        ) from None
    found.restype = result
    if arguments:
        found.argtypes = arguments
    return found


def pointer(array: NDArray[Any]) -> int:
    """The address of a contiguous array's data, which is valid while the caller keeps the array.

    Read where NumPy's binary interface has it: ``array.ctypes.data`` takes ten times as long, and a step asks a hundred
    times.
    """
    assert array.flags.c_contiguous, "expected a contiguous array"
    return ctypes.c_size_t.from_address(id(array) + _DATA_AT).value


def pointers(*arrays: NDArray[Any]) -> list[int]:
    """`pointer` of each."""
    assert all(map(_IS_CONTIGUOUS, arrays)), "expected contiguous arrays"
    at = ctypes.c_size_t.from_address
    return [at(id(each) + _DATA_AT).value for each in arrays]


def _check_pointer() -> None:
    probe = np.zeros(1)
    if pointer(probe) != probe.ctypes.data:
        raise KernelUnavailable("expected CPython and NumPy's arrays as C sees them; use these, or backend='reference'")


_check_pointer()
