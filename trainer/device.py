"""The trainer's device, number of threads, precision and determinism."""

from __future__ import annotations

import torch

from model import device
from trainer.config import TrainerConfig


def choose_device(config: TrainerConfig) -> torch.device:
    """`model.device.choose_device` for ``trainer.device``; also sets the process's threads, precision, determinism."""
    chosen = device.choose_device(config.device, "trainer.device")
    if config.num_threads > 0:
        torch.set_num_threads(config.num_threads)
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    if config.deterministic:
        # `use_deterministic_algorithms` would load TorchInductor and Triton, which complain on stderr when they end.
        torch.set_deterministic_debug_mode("error")
    return chosen
