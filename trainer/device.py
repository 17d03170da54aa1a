"""The trainer's device, number of threads, precision and determinism."""

from __future__ import annotations

import os

import torch

from model import device
from trainer.config import TrainerConfig


def choose_device(config: TrainerConfig) -> torch.device:
    """`model.device.choose_device` for ``trainer.device``; also sets the process's threads, precision, determinism."""
    chosen = device.choose_device(config.device, "trainer.device")
    torch.set_num_threads(num_threads(config))
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    if config.deterministic:
        # `use_deterministic_algorithms` would load TorchInductor and Triton, which complain on stderr when they end.
        torch.set_deterministic_debug_mode("error")
        # Without it, torch refuses every product on a GPU.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return chosen


def num_threads(config: TrainerConfig) -> int:
    """``trainer.num_threads``; if that is 0, ``OMP_NUM_THREADS``, or else half of the processors that this process may
    use: a live step is so small that a second thread mostly waits for a processor that another process of the loop has.
    """
    in_environment = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    told = config.num_threads or (int(in_environment) if in_environment.isdecimal() else 0)
    return told or max(1, len(os.sched_getaffinity(0)) // 2)
