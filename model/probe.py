"""The dense weights' outputs for fixed inputs.

A trainer publishes them with each version, and a server compares them with its own. That shows that the server has
these weights, and computes with them as the trainer does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.hstu import HSTU

NUM_ITEMS = 5


@torch.no_grad()
def probe_outputs(model: HSTU, backend: str = "auto") -> list[float]:
    """The logits of the kinds at the last of a few invented items, and the first numbers of the query after it."""
    config, device = model.config, model.start_M.device
    waves = torch.arange(NUM_ITEMS * config.item_width, dtype=torch.float32, device=device)
    item_nM = model.item_inputs(torch.sin(waves).reshape(NUM_ITEMS, config.item_width), None)
    kinds_nK = torch.ones((NUM_ITEMS, len(config.kinds)), device=device)
    x_TM = model.interleave(item_nM, model.action_inputs(item_nM, kinds_nK, torch.ones(NUM_ITEMS, device=device)))
    time_T = 60_000 * (1 + torch.arange(2 * NUM_ITEMS, device=device) // 2)
    offsets = torch.tensor([0, 2 * NUM_ITEMS], device=device)
    y_TM = model.encode(x_TM, offsets, time_T, time_T, backend=backend)
    logits: Tensor = model.rank_logits(y_TM[-2:-1], None)
    query_D = model.retrieval_query(y_TM[-1:])[0]
    return [round(float(each), 6) for each in torch.cat([logits[0], query_D[:8]]).cpu()]
