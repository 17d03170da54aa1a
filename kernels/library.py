"""The compiled C++ kernels: loading them, and choosing the instruction set at run time.

`python -m kernels.build` makes ``kernels/build/libheadrace_kernels.so``. Functions that are compiled once per
instruction set have its name as a suffix (``attention_forward_avx512``); `function` picks the best one that this
processor supports, or the one forced by ``HEADRACE_CPU_LEVEL=portable|avx2|avx512|amx``. AMX only multiplies bfloat16:
float32 is multiplied there as a sum of two bfloat16 terms if `torch.set_float32_matmul_precision` is "high" or
"medium", and by AVX-512 at "highest", PyTorch's default.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kernels.backend import KernelUnavailable
from kernels.sources import SOURCES, digest

LIBRARY_PATH = Path(__file__).parent / "build" / "libheadrace_kernels.so"
LEVELS = ("portable", "avx2", "avx512", "amx")
"""In ascending order: every level includes those before it."""


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
def machine_level() -> str:
    """The highest instruction set that this processor supports, this process may use, and the library has."""
    library = load()
    library.headrace_cpu_level.restype = ctypes.c_int
    return LEVELS[min(library.headrace_cpu_level(), library.headrace_built_level())]


def level() -> str:
    """The instruction set in use: the machine's best, or the one forced by ``HEADRACE_CPU_LEVEL``."""
    forced = os.environ.get("HEADRACE_CPU_LEVEL", "")
    best = machine_level()
    if not forced:
        return best
    if forced not in LEVELS:
        raise ValueError(f"HEADRACE_CPU_LEVEL: expected one of {', '.join(LEVELS)}, got {forced!r}; unset it or fix it")
    if LEVELS.index(forced) > LEVELS.index(best):
        raise KernelUnavailable(
            f"HEADRACE_CPU_LEVEL: expected at most {best!r} (this machine's highest), got {forced!r}; unset it"
        )
    return forced


@cache
def _symbol(name: str, at: str) -> Any:
    library = load()
    for candidate in reversed(LEVELS[: LEVELS.index(at) + 1]):
        try:
            found = getattr(library, f"{name}_{candidate}")
        except AttributeError:
            continue
        found.restype = ctypes.c_int
        return found
    raise KernelUnavailable(f"the compiled kernels have no {name!r}; run `python -m kernels.build --force`")


def function(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The version of ``name`` for the level in use, or for the highest below it; a call returns 0 for success.

    ``dtype``: of the operands; for float32, the precision is that of `torch.get_float32_matmul_precision`.
    """
    at = level()
    if at == "amx" and dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        at = "avx512"
    return _symbol(name, at)


def baseline(name: str) -> Any:
    """A function that is compiled only once, for any processor."""
    try:
        return getattr(load(), name)
    except AttributeError:
        raise KernelUnavailable(
            f"the compiled kernels have no {name!r}; run `python -m kernels.build --force`"
        ) from None


def num_threads() -> int:
    """How many threads a kernel may use: torch's setting."""
    return torch.get_num_threads()


def address(tensor: torch.Tensor | None) -> int | None:
    """A tensor's data pointer for ctypes (None → NULL)."""
    return None if tensor is None else tensor.data_ptr()
