"""The definition of the tokens of interactions: plain PyTorch, differentiable, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.tokens.params import TokenParams


def tokens(
    table_VD: Tensor,
    place_n: Tensor,
    kinds_nK: Tensor,
    value_n: Tensor | None,
    side_nM: Tensor | None,
    params: TokenParams,
) -> Tensor:
    """(2n, M): item, action, item, action, …; see `kernels.tokens`."""
    item_nM = table_VD[place_n].to(params.item_weight.dtype) @ params.item_weight
    if side_nM is not None:
        item_nM = item_nM + side_nM
    action_nM = params.action_M + kinds_nK @ params.kind_KM + item_nM @ params.action_item_weight
    if value_n is not None and params.value_M is not None:
        present = torch.isfinite(value_n)
        known = torch.where(present, value_n, torch.zeros_like(value_n))
        scaled = torch.sign(known) * torch.log1p(known.abs())
        action_nM = action_nM + torch.stack([present.to(scaled.dtype), scaled], dim=1) @ params.value_M
    return torch.stack([item_nM, action_nM], dim=1).reshape(-1, item_nM.shape[1])
