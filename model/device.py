"""Which device to compute on."""

from __future__ import annotations

import torch

from wire.errors import ConfigError


def choose_device(wanted: str, key: str) -> torch.device:
    """``wanted``: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.

    Raises `ConfigError` if there is no GPU; ``key`` names the setting that asked for one.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ConfigError(f'{key}: expected a CUDA GPU for "cuda", got a machine without one; use "auto" or "cpu"')
    return torch.device("cuda" if wanted != "cpu" and has_gpu else "cpu")
