"""Which device a trainer computes on, with how many threads, and how strictly."""

from __future__ import annotations

import torch

from trainer.config import DeviceError, TrainerConfig


def choose_device(config: TrainerConfig) -> torch.device:
    """``auto``: the GPU where there is one. Raises `DeviceError` for a GPU that is not there.

    Sets the number of threads too, and on a GPU the precision of float32 products.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            'trainer.device: expected a CUDA GPU for "cuda", got a machine without one; use "auto" or "cpu"'
        )
    if config.num_threads > 0:
        torch.set_num_threads(config.num_threads)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    use_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if use_gpu:
        torch.set_float32_matmul_precision(config.matmul_precision)
    return torch.device("cuda" if use_gpu else "cpu")
