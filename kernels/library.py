"""The compiled C++ kernels (`kernels.compiled`): choosing the instruction set at run time.

Functions that are compiled once per instruction set have its name as a suffix (``attention_forward_avx512``);
`function` picks the best one that this processor supports, or the one forced by
``HEADRACE_CPU_LEVEL=portable|avx2|avx512|amx``. AMX only multiplies bfloat16: float32 is multiplied there as a sum of
two bfloat16 terms if `torch.set_float32_matmul_precision` is "high" or "medium", and by AVX-512 at "highest", PyTorch's
default.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

import torch

from kernels.compiled import LIBRARY_PATH, KernelUnavailable, baseline, load, open_library, pointer, pointers

__all__ = [
    "LIBRARY_PATH",
    "address",
    "baseline",
    "function",
    "level",
    "load",
    "num_threads",
    "open_library",
    "pointer",
    "pointers",
]

LEVELS = ("portable", "avx2", "avx512", "amx")
"""In ascending order: every level includes those before it."""


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


def num_threads() -> int:
    """How many threads a kernel may use: torch's setting."""
    return torch.get_num_threads()


def address(tensor: torch.Tensor | None) -> int | None:
    """A tensor's data pointer for ctypes (None → NULL)."""
    return None if tensor is None else tensor.data_ptr()
