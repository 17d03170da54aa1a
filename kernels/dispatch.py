"""Finds the module that holds an op's version for a backend: ``kernels/<op>/cpp.py`` or ``kernels/<op>/triton_op.py``.

Such a module offers a function named and typed as the op's reference (plus its caches), called after validation.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from kernels.backend import KernelUnavailable

_MODULES = {"cpp": "cpp", "triton": "triton_op"}


def load(op: str, backend: str) -> ModuleType:
    """The module of ``op`` (a folder's name) for ``backend``; raises `KernelUnavailable` if there is none."""
    name = f"kernels.{op}.{_MODULES[backend]}"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise KernelUnavailable(
            f"{op}: backend {backend!r} needs {missing}, which is missing; install it, or ask for backend='reference'"
        ) from error
