"""The library of compiled C++ kernels, loaded without torch (`kernels.library` has what needs torch).

`python -m kernels.build` makes ``kernels/build/libheadrace_kernels.so``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from kernels.sources import SOURCES, digest

LIBRARY_PATH = Path(__file__).parent / "build" / "libheadrace_kernels.so"


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


def baseline(name: str) -> Any:
    """A function that is compiled only once, for any processor."""
    try:
        return getattr(load(), name)
    except AttributeError:
        raise KernelUnavailable(
            f"the compiled kernels have no {name!r}; run `python -m kernels.build --force`"
        ) from None
