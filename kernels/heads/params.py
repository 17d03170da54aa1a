"""Weights, inputs and outputs of a training step's heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

FEEDBACK = ("reversal", "vanilla", "fnw")


@dataclass(frozen=True, eq=False)
class HeadParams:
    """Weights, or their gradients: outputs have M columns, item rows D, and there are K kinds and P priors."""

    start_M: Tensor
    query_weight: Tensor
    """(M, D - 1)"""
    query_bias: Tensor
    """(D - 1,)"""
    rank_weight: Tensor
    """(M, K)"""
    rank_bias_K: Tensor
    rank_prior_PK: Tensor
    norm_weight_M: Tensor
    norm_bias_M: Tensor


@dataclass(frozen=True, slots=True)
class HeadRules:
    """``rank_share``: the weight of ranking's mean loss in the gradients. ``feedback``: how a kind that arrives for an
    earlier interaction is learned."""

    temperature: float
    bias_scale: float
    norm_eps: float
    rank_share: float = 1.0
    feedback: str = "reversal"
    unit_eps: float = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class HeadInputs:
    """Of S outputs, R targets that are ranked and Q queries.

    ``output_R``, ``output_Q`` int64: the output that each is computed from; -1 for a query: the learnt start.
    ``target_Q`` int64: the row that was chosen, 0 if it is not learned. ``valid_V`` bool: the rows that compete; a
    target always does.
    """

    y_SM: Tensor
    output_R: Tensor
    output_Q: Tensor
    table_VD: Tensor
    valid_V: Tensor
    target_Q: Tensor
    prior_RPK: Tensor
    learned_RK: Tensor
    is_new_R: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class HeadOutputs:
    """Predictions, both mean losses and, if requested, the gradients of outputs and table."""

    logit_QV: Tensor
    logit_RK: Tensor
    query_QD: Tensor
    """The logits are their inner products with the catalogue's rows, whose directions (all columns but the bias) have
    unit length."""
    retrieval: float
    ranking: float
    d_y_SM: Tensor | None
    d_table_VD: Tensor | None
