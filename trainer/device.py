"""Which device a trainer computes on, with how many threads, and how strictly."""

from __future__ import annotations

import torch

from trainer.config import TrainerConfig
from trainer.errors import DeviceError


def choose_device(config: TrainerConfig) -> torch.device:
    """``auto``: the GPU where there is one. Raises `DeviceError` for a GPU that is not there.

    Sets the process's threads, precision and determinism too.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            'trainer.device: expected a CUDA GPU for "cuda", got a machine without one; use "auto" or "cpu"'
        )
    if config.num_threads > 0:
        torch.set_num_threads(config.num_threads)
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    use_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")
