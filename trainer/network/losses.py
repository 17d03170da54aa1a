"""The two losses: which item comes next (retrieval), and what is done with it (ranking)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from kernels import full_softmax, sampled_softmax

Int64 = NDArray[np.int64]


def exposure_weights(propensity_S: NDArray[np.float64], most: float) -> NDArray[np.float32]:
    """(S,) weights of choices that were likelier because their items were shown: 1 / propensity, at most ``most``,
    divided by their mean over the step. A choice without a propensity (NaN) weighs 1.

    Clipped and self-normalised inverse propensities ("The self-normalized estimator for counterfactual learning",
    Swaminathan & Joachims, NIPS 2015): undivided, a step of rarely shown items would move the weights further.
    """
    weight_S, known_S = np.ones(len(propensity_S), np.float32), np.isfinite(propensity_S)
    if known_S.any():
        inverse = np.minimum(1.0 / propensity_S[known_S], most)
        weight_S[known_S] = inverse / inverse.mean()
    return weight_S


def exact_retrieval_loss(query_RD: Tensor, table_VD: Tensor, target_R: Tensor, valid_V: Tensor, backend: str) -> Tensor:
    """(R,) cross entropy over all live items; queries and table already scaled (inner product = logit)."""
    return full_softmax(
        query_RD, table_VD, target_R, temperature=1.0, normalize=False, valid_V=valid_V, backend=backend
    )


def sampled_retrieval_loss(
    query_RD: Tensor,
    table_UD: Tensor,
    target_R: Tensor,
    negative_S: Tensor,
    log_draws_S: Tensor,
    backend: str,
) -> Tensor:
    """(R,) cross entropy against shared negatives, each weighted by the inverse of its expected number of draws.

    The target is not drawn: it is always there exactly once, with weight one. So the denominator is in expectation that
    of the whole vocabulary, and the loss approaches the exact one as draws increase (Bengio & Senécal, IEEE TNN 2008;
    Blanc & Rendle, "Adaptive sampled softmax with kernel based sampling", ICML 2018). Subtracting the target's log Q
    too, as for a target that is one of the draws (Yi et al., RecSys 2019), would multiply all its negatives by its own
    expected draws: below one a rare target costs too little, above one a frequent target too much.
    """
    return sampled_softmax(
        query_RD,
        table_UD,
        target_R,
        negative_S,
        temperature=1.0,
        normalize=False,
        log_q_target_R=torch.zeros(len(target_R), device=query_RD.device),
        log_q_negatives=log_draws_S,
        backend=backend,
    )


def draw_negatives(num_live: int, num_negatives: int, seed: int, step: int) -> Int64:
    """(S,) places among ``num_live`` live rows, drawn uniformly with replacement; a function of number, seed and
    step."""
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return generator.integers(0, num_live, num_negatives)


def pick_in_batch(target_row_R: Int64, most: int, seed: int, step: int) -> Int64:
    """The batch's own targets as negatives; if there are more than ``most``, a sample of that size without replacement.

    Bounds the cost of a long step's loss, which is targets × negatives: 21,000 targets against all of themselves took
    1.9 s of a step's 2.4 s.
    """
    if len(target_row_R) <= most:
        return target_row_R
    generator = np.random.Generator(np.random.Philox(key=[seed + 2, step]))
    return target_row_R[np.sort(generator.choice(len(target_row_R), most, replace=False))]


def log_expected_draws(
    share_N: NDArray[np.float64], num_in_batch: int, num_targets: int, num_uniform: int, num_live: int
) -> NDArray[np.float32]:
    """log of each row's expected count among a target's negatives: other targets of the batch plus uniform draws.

    ``num_in_batch`` of the ``num_targets`` are negatives. A target is among them with the same probability as any
    other, and does not compete with itself.
    """
    num_others = num_in_batch * (1 - 1 / max(1, num_targets))
    expected = share_N * num_others + num_uniform / max(1, num_live)
    return np.log(np.maximum(expected, 1e-12)).astype(np.float32)


def ranking_loss(logits_RK: Tensor, kinds_RK: Tensor, is_new_R: Tensor, feedback: str) -> Tensor:
    """(R,) binary cross entropy of the kinds that the step brings for each target, summed over kinds.

    A new interaction teaches 1 for the kinds that it has and, for now, 0 for the others. A kind that arrives later has
    been taught as 0; ``feedback`` says how that is corrected:

    - ``vanilla``: it is taught as 1 too, and the 0 stays.
    - ``fnw``: both are weighted so that the 0s of kinds still to come cancel in expectation ("fake negative weighted",
      Ktena et al., "Addressing delayed feedback for continuous training", RecSys 2019). Assumes that every kind is
      late.
    - ``reversal``: it is taught as 1, and the 0 is reversed: -log p + log(1 - p), whose gradient with respect to the
      logit is -1 for any p. Together with the gradient of the first sighting, that is the gradient of the final
      outcome, whatever share of a kind arrives late.
    """
    loss_R: Tensor = _RankingLoss.apply(logits_RK, kinds_RK, is_new_R, feedback)
    return loss_R


class _RankingLoss(torch.autograd.Function):
    """`ranking_loss`, with its gradient written out: it is short, and autograd would run thirty small operations."""

    @staticmethod
    def forward(ctx: Any, logits_RK: Tensor, kinds_RK: Tensor, is_new_R: Tensor, feedback: str) -> Tensor:
        positive_RK, p_RK = F.softplus(-logits_RK), torch.sigmoid(logits_RK)  # -log p
        negative_RK = positive_RK + logits_RK  # -log (1 - p)
        is_done_RK, is_new_R1 = kinds_RK > 0, is_new_R[:, None]
        loss_RK, gradient_RK = torch.where(is_done_RK, positive_RK, negative_RK), p_RK - is_done_RK.to(p_RK.dtype)
        late_RK = -logits_RK if feedback == "reversal" else positive_RK
        late_gradient_RK = torch.full_like(p_RK, -1.0) if feedback == "reversal" else p_RK - 1
        if feedback == "fnw":
            weight_RK = torch.where(is_done_RK, 1 + p_RK, (1 - p_RK) * (1 + p_RK))
            loss_RK, gradient_RK = loss_RK * weight_RK, gradient_RK * weight_RK
            late_RK, late_gradient_RK = late_RK * weight_RK, late_gradient_RK * weight_RK
        ctx.save_for_backward(torch.where(is_new_R1, gradient_RK, late_gradient_RK * kinds_RK))
        return torch.where(is_new_R1, loss_RK, late_RK * kinds_RK).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_RK,) = ctx.saved_tensors
        return gradient_RK * grads[0][:, None], None, None, None


def mean_or_zero(loss_R: Tensor) -> Tensor:
    """The mean of a loss; zero (with a gradient) if there are no targets."""
    return loss_R.mean() if loss_R.numel() else torch.sum(loss_R)
