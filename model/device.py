"""Which device to compute on."""

from __future__ import annotations

import importlib.util
import warnings

import torch

from wire.errors import ConfigError

LEAST_CAPABILITY = 8, 0
"""Of the GPUs that Triton supports: Ampere (A100, RTX 30) and later."""


def choose_device(wanted: str, key: str) -> torch.device:
    """``wanted``: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one that our kernels run on.

    Raises `ConfigError` if there is none for ``cuda``; ``key`` names the setting that asked for one.
    """
    has_gpu, fault = torch.cuda.is_available(), fault_of_gpu()
    if wanted == "cuda" and fault:
        raise ConfigError(f'{key}: expected a CUDA GPU for "cuda", got {fault}; use "auto" or "cpu"')
    if wanted == "auto" and has_gpu and fault:
        warnings.warn(f"{key}: computing on the processor: expected a CUDA GPU, got {fault}", stacklevel=2)
    return torch.device("cuda" if wanted != "cpu" and not fault else "cpu")


def fault_of_gpu() -> str:
    """What keeps this machine's GPU from being used; nothing if it can be."""
    if not torch.cuda.is_available():
        return "a machine without one"
    if torch.version.hip is not None:
        return "a build of torch for AMD (the kernels need CUDA)"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        name, (major, minor) = torch.cuda.get_device_name(), capability
        return f"{name} with compute capability {major}.{minor} (Triton supports 8.0 or later)"
    if importlib.util.find_spec("triton") is None:
        return "a Python without Triton, which compiles the kernels"
    return ""
