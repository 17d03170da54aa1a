"""The definition of the heads: plain PyTorch, differentiable, any float dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from kernels.heads.params import HeadInputs, HeadParams, HeadRules


def unit_direction(x_ND: Tensor, eps: float) -> Tensor:
    """Rows with all columns but the last divided by their norm, which is at least ``eps``."""
    direction = x_ND[:, :-1]
    length_N1 = torch.linalg.vector_norm(direction, dim=1, keepdim=True).clamp_min(eps)
    return torch.cat([direction / length_N1, x_ND[:, -1:]], dim=1)


def losses(inputs: HeadInputs, params: HeadParams, rules: HeadRules) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(Q, V) and (R, K) logits, queries, then the mean losses of retrieval and ranking; see `kernels.heads.heads`."""
    query_QD = _queries(inputs, params, rules)
    logit_QV = query_QD @ unit_direction(inputs.table_VD.to(query_QD.dtype), rules.unit_eps).T
    learned = inputs.target_Q > 0
    target_Q = inputs.target_Q[learned]
    competes = inputs.valid_V[None] | F.one_hot(target_Q, len(inputs.table_VD)).bool()
    masked = logit_QV[learned].masked_fill(~competes, float("-inf"))
    loss_Q = F.cross_entropy(masked, target_Q, reduction="none")
    logit_RK = _rank_logits(inputs, params, rules)
    loss_R = rank_losses(logit_RK, inputs.learned_RK, inputs.is_new_R, rules.feedback).sum(dim=1)
    retrieval, ranking = (each.mean() if each.numel() else each.sum() for each in (loss_Q, loss_R))
    return logit_QV, logit_RK, query_QD, retrieval, ranking


def _queries(inputs: HeadInputs, params: HeadParams, rules: HeadRules) -> Tensor:
    with_start = torch.cat([inputs.y_SM, params.start_M[None]])
    before_QM = with_start[torch.where(inputs.output_Q < 0, len(inputs.y_SM), inputs.output_Q)]
    raw = before_QM @ params.query_weight + params.query_bias
    length_Q1 = torch.linalg.vector_norm(raw, dim=1, keepdim=True).clamp_min(rules.unit_eps)
    return F.pad(raw / length_Q1 / rules.temperature, (0, 1), value=rules.bias_scale)


def _rank_logits(inputs: HeadInputs, params: HeadParams, rules: HeadRules) -> Tensor:
    y_RM = inputs.y_SM[inputs.output_R]
    normed = F.layer_norm(y_RM, y_RM.shape[1:], params.norm_weight_M, params.norm_bias_M, rules.norm_eps)
    prior_RK = (inputs.prior_RPK * params.rank_prior_PK).sum(dim=1)
    return normed @ params.rank_weight + params.rank_bias_K + prior_RK


def rank_losses(logit_RK: Tensor, kinds_RK: Tensor, is_new_R: Tensor, feedback: str) -> Tensor:
    """(R, K) binary cross entropy of the kinds. Where a kind arrives later than its interaction, ``feedback`` says how
    it is learned: as a 1 ("vanilla"), as a 1 that also reverses the 0 learned before ("reversal"), or as both, weighted
    ("fnw")."""
    positive, negative = F.softplus(-logit_RK), F.softplus(logit_RK)
    is_done, p_RK = kinds_RK > 0, torch.sigmoid(logit_RK.detach())
    weight = torch.where(is_done, 1 + p_RK, (1 - p_RK) * (1 + p_RK)) if feedback == "fnw" else torch.ones_like(p_RK)
    late = -logit_RK if feedback == "reversal" else positive
    return torch.where(is_new_R[:, None], torch.where(is_done, positive, negative), late * kinds_RK) * weight
