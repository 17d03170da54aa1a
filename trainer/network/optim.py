"""The dense weights' optimiser: AdamW on one flat vector, and the learning-rate schedules.

Flat, because a small model has some forty tensors, and a step must not cost forty small updates of six operations each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kernels.adamw import AdamWRules, AdamWState, adamw_
from trainer.config import TrainerConfig


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019) over all parameters as one vector; after
    ``sgd_after_steps`` steps plain gradient descent, as in "Scaling law of large sequential recommendation models"
    (Zhang et al., RecSys 2024).

    Takes over the parameters: they become views of ``flat``, and their gradients accumulate in views of ``gradient``.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: TrainerConfig) -> None:
        self._rules = AdamWRules(
            config.beta1, config.beta2, config.adam_eps, weight_decay=config.weight_decay, clip_norm=config.clip_norm
        )
        self._backend = config.backend
        self._last_adam = config.sgd_after_steps or math.inf
        self._sgd_lr_ratio = config.sgd_lr_ratio
        self.flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self.gradient, self.mean, self.square = (torch.zeros_like(self.flat) for _ in range(3))
        self.num_steps = 0
        start = 0
        for parameter in parameters:
            part = slice(start, start + parameter.numel())
            parameter.data = self.flat[part].view_as(parameter)
            parameter.grad = self.gradient[part].view_as(parameter)
            start = part.stop

    def step(self, lr: float) -> None:
        """Move all parameters by one step along the clipped gradient, and clear it."""
        self.num_steps += 1
        if self.num_steps > self._last_adam:
            self._descend(lr * self._sgd_lr_ratio)
            return
        state = AdamWState(self.flat, self.gradient, self.mean, self.square)
        adamw_(state, self._rules, lr, self.num_steps, backend=self._backend)

    def _descend(self, lr: float) -> None:
        gradient, rules = self.gradient, self._rules
        if rules.clip_norm > 0:
            gradient.mul_((rules.clip_norm / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0))
        self.flat.mul_(1 - lr * rules.weight_decay).sub_(gradient, alpha=lr)
        gradient.zero_()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Weights and moments, as arrays."""
        flats = {"flat": self.flat, "mean": self.mean, "square": self.square}
        return {**{name: flat.cpu().numpy() for name, flat in flats.items()}, "num_steps": np.array([self.num_steps])}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`; the parameters, being views, change with it."""
        for name, flat in (("flat", self.flat), ("mean", self.mean), ("square", self.square)):
            flat.copy_(torch.from_numpy(np.ascontiguousarray(state[name])))
        self.num_steps = int(state["num_steps"][0])


def lr_scale(config: TrainerConfig, step: int) -> float:
    """The factor on the learning rates at a step (counted from 0).

    ``constant``: 1 after ``warmup_steps`` of linear warm-up. ``wsa``: warm up, stay, then anneal along a half cosine to
    ``final_lr_ratio`` and stay there (Warmup-Stable-Annealing, for a backfill that turns into a stream; CPRec 2025).
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    annealed = step - config.warmup_steps - config.stable_steps
    if config.schedule == "constant" or annealed < 0:
        return 1.0
    progress = min(1.0, (annealed + 1) / max(1, config.anneal_steps))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
