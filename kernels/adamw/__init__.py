"""AdamW on all dense weights as one vector: the clipped step, the moments and the cleared gradient in one call.

Source: decoupled weight decay Adam, Loshchilov & Hutter, ICLR 2019.
"""

from __future__ import annotations

import torch

from kernels.adamw import reference
from kernels.adamw.params import AdamWRules, AdamWState
from kernels.dispatch import load

__all__ = ["AdamWRules", "AdamWState", "adamw_"]


@torch.no_grad()
def adamw_(state: AdamWState, rules: AdamWRules, lr: float, step: int, *, backend: str = "auto") -> None:
    """Move ``state.weight`` by one step, the ``step``-th (from 1), and clear its gradient. All float32, contiguous.

    On a GPU, torch's own operations. Raises ValueError (lengths), `KernelUnavailable`.
    """
    lengths = {name: len(getattr(state, name)) for name in AdamWState.__slots__}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"AdamWState: expected vectors of one length, got {lengths}")
    if backend == "reference" or state.weight.device.type != "cpu":
        reference.adamw_(state, rules, lr, step)
        return
    load("adamw", "cpp").adamw_(state, rules, lr, step)
