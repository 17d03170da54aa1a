"""A step's forward and backward pass on the CPU without autograd: `model.direct` on a batch and the item table.

For steps whose loss is over the whole catalogue and whose logits fit into memory; autograd computes the others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import Tail
from kernels.heads import HeadInputs, HeadOutputs
from model.direct import DirectInputs, DirectPass
from model.hstu import HSTU
from model.tokens import token_times
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch
from trainer.metrics.evaluator import Forward, Leaf

Int64 = NDArray[np.int64]
MOST_LOGITS = 1 << 22
"""How many logits a step's choices may have: each choice has one for every row of the catalogue, and all are kept."""


class DirectStep:
    """The passes of ``model``, whose parameters the optimiser has taken over."""

    def __init__(self, model: HSTU, config: TrainerConfig, *, most_logits: int = MOST_LOGITS) -> None:
        self._most_logits = most_logits
        self._pass = DirectPass(
            model, rank_share=config.rank_weight, feedback=config.late_feedback,
            context_gradient=config.context_gradient, dropouts=config.dropouts(model.config.num_layers),
        )  # fmt: skip

    def fits(self, batch: JaggedBatch, num_rows: int) -> bool:
        """Whether a batch's logits over ``num_rows`` rows may be kept."""
        return len(batch.choice_S) * num_rows <= self._most_logits

    def __call__(
        self,
        batch: JaggedBatch,
        tail: Tail,
        leaves: list[Leaf],
        side_nM: Tensor | None,
        input_rows_n: Int64,
        target_row_R: Int64,
        prior_RPK: NDArray[np.float32],
        seed: int,
        rank_factor: float = 1.0,
        when_predicted: Callable[[HeadOutputs], None] | None = None,
    ) -> Forward:
        """Predictions and losses; ranking's gradients are multiplied by ``rank_factor``. If gradients are enabled, they
        are all computed too: those of the weights are written where the optimiser reads them, the others into
        ``leaves``, of which the first is the whole item table. ``when_predicted``: see `DirectInputs`."""
        items, rows_V = leaves[0].table, leaves[0].rows_U
        wanted = batch.choice_S
        answers = (
            torch.from_numpy(items.live[: len(rows_V)] & (rows_V > 0)),
            torch.from_numpy(target_row_R[wanted]),
            torch.from_numpy(prior_RPK),
            torch.from_numpy(batch.learned_RK),
            torch.from_numpy(batch.is_new_R),
        )
        places = torch.from_numpy(output_places(batch, wanted, tail))
        output_R, output_Q = places[: batch.num_targets], places[batch.num_targets :]
        key_time_T, query_time_T = token_times(batch.time_ms_n, batch.query_time_n)
        inputs = DirectInputs(
            leaves[0].values_UD, torch.from_numpy(input_rows_n), torch.from_numpy(batch.kinds_nK),
            torch.from_numpy(batch.value_n), side_nM, torch.from_numpy(2 * batch.starts_B1),
            torch.from_numpy(query_time_T), torch.from_numpy(key_time_T), tail, seed,
            lambda y_SM: HeadInputs(y_SM, output_R, output_Q, leaves[0].values_UD, *answers), rank_factor,
            when_predicted,
        )  # fmt: skip
        out = self._pass(inputs)
        leaves[0].direct_UD = out.heads.d_table_VD
        if out.d_side_nM is not None:
            for leaf in leaves[1:]:
                leaf.direct_UD = _gathered(leaf, out.d_side_nM)
        return Forward(
            out.heads.query_QD, torch.zeros((0, 0)), True, out.heads.logit_RK, target_row_R,
            torch.tensor(out.heads.retrieval), leaves, torch.tensor(out.heads.ranking), out.heads.logit_QV,
            has_gradients=True,
        )  # fmt: skip


def output_places(batch: JaggedBatch, wanted: Int64, tail: Tail) -> Int64:
    """The places among the tail's tokens of each target's item, then of the action before each choice (-1: none)."""
    previous_S = batch.previous_R[wanted]
    tokens = np.concatenate([2 * batch.target_R, 2 * previous_S + 1])
    places = np.searchsorted(tail.rows_S.numpy(), tokens)
    places[batch.num_targets :][previous_S < 0] = -1
    return places


def _gathered(leaf: Leaf, d_side_nM: Tensor) -> Tensor:
    """(U, M) the gradient of rows that were summed into side inputs."""
    assert leaf.place_nF is not None
    gradient_UM = d_side_nM.new_zeros((len(leaf.rows_U), d_side_nM.shape[1]))
    for column in leaf.place_nF.unbind(dim=1):
        gradient_UM.index_add_(0, column, d_side_nM)
    return gradient_UM
