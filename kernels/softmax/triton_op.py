"""The softmax ops on CUDA tensors."""

from __future__ import annotations

from kernels.softmax.triton_best import rank_of_target, top_k
from kernels.softmax.triton_loss import full_softmax, sampled_softmax

__all__ = ["full_softmax", "rank_of_target", "sampled_softmax", "top_k"]
