"""The definition of AdamW on one vector, in plain PyTorch."""

from __future__ import annotations

import torch

from kernels.adamw.params import AdamWRules, AdamWState


def adamw_(state: AdamWState, rules: AdamWRules, lr: float, step: int) -> None:
    """See `kernels.adamw.adamw_`."""
    gradient = state.gradient
    if rules.clip_norm > 0:
        gradient.mul_((rules.clip_norm / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0))
    state.mean.lerp_(gradient, 1 - rules.beta1)
    state.square.mul_(rules.beta2).addcmul_(gradient, gradient, value=1 - rules.beta2)
    mean_fix, square_fix = 1 - rules.beta1**step, 1 - rules.beta2**step
    if rules.weight_decay > 0:
        state.weight.mul_(1 - lr * rules.weight_decay)
    denominator = (state.square / square_fix).sqrt_().add_(rules.eps)
    state.weight.addcdiv_(state.mean, denominator, value=-lr / mean_fix)
    gradient.zero_()
