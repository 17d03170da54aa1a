"""The two losses: which item comes next, and what is done with it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from kernels import full_softmax, sampled_softmax

Int64 = NDArray[np.int64]


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
    """(R,) cross entropy against shared negatives, each weighed by one over how often it was expected among them.

    The target itself is not drawn: it is there once, always, and keeps its own weight of one. So the denominator is
    the whole vocabulary's in expectation, and the loss approaches the exact one as draws increase (Bengio & Senécal,
    IEEE TNN 2008; Blanc & Rendle, "Adaptive sampled softmax with kernel based sampling", ICML 2018). Subtracting the
    target's log Q too, as for a target that is one of the draws (Yi et al., RecSys 2019), multiplies all its negatives
    by its own expected draws: below one a rare target costs too little, above one a frequent target too much.
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


def draw_negatives(live_rows_V: Int64, num_negatives: int, seed: int, step: int) -> Int64:
    """(S,) rows drawn uniformly from the vocabulary, with replacement; a function of seed and step alone."""
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return live_rows_V[generator.integers(0, len(live_rows_V), num_negatives)]


def pick_in_batch(target_row_R: Int64, most: int, seed: int, step: int) -> Int64:
    """The batch's own targets as negatives; of more than ``most``, so many of them drawn without replacement.

    Bounds the loss of a long step, which is targets × negatives: 21,000 targets against all of themselves took 1.9 of a
    step's 2.4 s.
    """
    if len(target_row_R) <= most:
        return target_row_R
    generator = np.random.Generator(np.random.Philox(key=[seed + 2, step]))
    return target_row_R[np.sort(generator.choice(len(target_row_R), most, replace=False))]


def log_expected_draws(
    share_N: NDArray[np.float64], num_in_batch: int, num_targets: int, num_uniform: int, num_live: int
) -> NDArray[np.float32]:
    """log of how often a row is expected among a target's negatives: other targets of the batch plus uniform draws.

    ``num_in_batch`` of the ``num_targets`` are negatives. A target meets itself among them with the probability of
    any other, and does not compete with itself.
    """
    num_others = num_in_batch * (1 - 1 / max(1, num_targets))
    expected = share_N * num_others + num_uniform / max(1, num_live)
    return np.log(np.maximum(expected, 1e-12)).astype(np.float32)


def ranking_loss(logits_RK: Tensor, kinds_RK: Tensor) -> Tensor:
    """(R,) binary cross entropy, summed over kinds."""
    return F.binary_cross_entropy_with_logits(logits_RK, kinds_RK, reduction="none").sum(dim=1)


def mean_or_zero(loss_R: Tensor) -> Tensor:
    """Mean of a loss; zero (with a gradient) where there is nothing."""
    return loss_R.mean() if loss_R.numel() else torch.sum(loss_R)
