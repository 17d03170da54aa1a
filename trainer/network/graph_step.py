# mypy: allow-untyped-calls
"""A step's forward and backward pass on a GPU as two CUDA graphs: from item rows to both losses, over all items.

This does for everything between the tables and the optimiser what `trainer.network.graph` does for the layers: a live
step of a few dozen targets is hundreds of small launches and little else. A batch is padded to one of a few sizes and
copied as two arrays, one of integers and one of floats; losses are weighted sums, in which padding has weight zero. The
catalogue has at least as many rows as the item table has memory for; rows without an item do not compete. So a step
learns the same as without graphs, but for the last bits of sums over other tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from kernels import Tail
from kernels.step_inputs import Size, StepInputs
from kernels.transfer import staged
from model.hstu import HSTU
from model.lookup import rows_at
from trainer.network.graph import Captures, Input, PaddedTail, padded_size
from trainer.network.losses import exact_retrieval_loss, ranking_loss

LEAST_INTERACTIONS = 128
LEAST_USERS = 16
LEAST_ROWS = 4096


def size_of(inputs: StepInputs) -> Size:
    """The size that the step is padded to."""
    most = max(len(inputs.starts_B1) - 1, len(inputs.target_R))
    _, num_priors, num_kinds = inputs.prior_RPK.shape
    return Size(
        padded_size(len(inputs.row_n), LEAST_INTERACTIONS), padded_size(most, LEAST_USERS),
        max(LEAST_ROWS, len(inputs.live_V)), num_kinds, num_priors,
    )  # fmt: skip


@dataclass(slots=True, eq=False)
class StepOutputs:
    """Both losses, with gradients to the table's rows, the side inputs and the weights; predictions, without them."""

    retrieval: Tensor
    ranking: Tensor
    query_SD: Tensor
    table_VD: Tensor
    logits_RK: Tensor


def pack(inputs: StepInputs, size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """The inputs as one tensor of integers and one of floats, which `_Step.forward` splits again, on their way to a
    device (`kernels.transfer.staged`)."""
    integers, sent_integers = staged(sum(size.integers), torch.int64, device)
    floats, sent_floats = staged(sum(size.floats), torch.float32, device)
    inputs.write(size, integers, floats)
    return sent_integers, sent_floats


class _Step(nn.Module):
    """The module that is captured: all of the model's weights, and one size."""

    def __init__(self, model: HSTU, size: Size, rules: tuple[str, bool], backend: str) -> None:
        super().__init__()
        self.model, self._size, self._backend = model, size, backend
        self._feedback, self._context_gradient = rules

    def forward(self, row_VD: Tensor, integers: Tensor, floats: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
        """Both losses and the predictions of `StepOutputs`; ``sides``: the side inputs (n, M), if there are any."""
        size, model = self._size, self.model
        row_n, query_time_T, time_T, offsets_B1, target_R, before_S, learned_S = integers.split(size.integers)
        kinds, value_n, prior, learned, is_new_R, weight_R, weight_S, is_read_T, live_V = floats.split(size.floats)
        kinds_nK = kinds.view(size.interactions, size.kinds)
        item_nM = model.item_inputs(rows_at(row_n, row_VD), sides[0] if sides else None)
        x_TM = model.interleave(item_nM, model.action_inputs(item_nM, kinds_nK, value_n))
        y_TM = model.encode(
            x_TM, offsets_B1, query_time_T, time_T, in_order=True, backend=self._backend,
            tail=cast("Tail", PaddedTail(is_read_T > 0)), context_gradient=self._context_gradient,
        )  # fmt: skip
        read = rows_at(torch.cat([target_R, before_S]), torch.cat([y_TM, model.start_M[None]]))
        query_SD, table_VD = model.retrieval_query(read[size.users :]), model.retrieval_table(row_VD)
        loss_S = exact_retrieval_loss(query_SD, table_VD, learned_S, live_V > 0, self._backend)
        logits_RK = model.rank_logits(read[: size.users], prior.view(size.users, size.priors, size.kinds))
        loss_R = ranking_loss(logits_RK, learned.view(size.users, size.kinds), is_new_R > 0, self._feedback)
        losses = (loss_S * weight_S).sum(), (loss_R * weight_R).sum()
        return *losses, query_SD.detach(), table_VD.detach(), logits_RK.detach()


class _LearnedStep(nn.Module):
    """A `_Step` whose first output is the loss that is learned."""

    def __init__(self, step: _Step, rank_weight: float) -> None:
        super().__init__()
        self.step, self._rank_weight = step, rank_weight

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The loss, then the outputs of `_Step`."""
        retrieval, ranking, *predictions = self.step(*arguments)
        return retrieval + self._rank_weight * ranking, retrieval, ranking, *predictions


class PaddedStep:
    """Forward and backward passes of steps whose key times are in order and whose loss is over the whole catalogue.

    ``rank_weight``: of ranking's loss; needed for `learn`.
    """

    def __init__(
        self, model: HSTU, captures: Captures, *, feedback: str, context_gradient: bool, backend: str = "auto",
        rank_weight: float = 1.0,
    ) -> None:  # fmt: skip
        self._model, self._captures, self._backend = model, captures, backend
        self._rules, self._rank_weight = (feedback, context_gradient), rank_weight

    @property
    def works(self) -> bool:
        """Whether no capture has failed."""
        return self._captures.works

    def __call__(self, row_VD: Tensor, inputs: StepInputs, side_nM: Tensor | None) -> StepOutputs:
        """``row_VD``: a leaf of `Size.rows` rows: the item table's, then rows that belong to no item."""
        size = size_of(inputs)
        device = row_VD.device
        arguments = [row_VD, *(each.to(device, non_blocking=True) for each in pack(inputs, size, device))]
        if side_nM is not None:
            arguments.append(F.pad(side_nM, (0, 0, 0, size.interactions - len(side_nM))))
        return _outputs(inputs, self._captures.replay((size, len(arguments)), lambda: self._step(size), arguments))

    def learn(
        self, row_VD: Tensor, inputs: StepInputs, side_nM: Tensor | None
    ) -> tuple[StepOutputs, Tensor, Tensor | None]:
        """The same with both passes in one graph: the outputs, without autograd, and the gradients of rows and side
        inputs; those of the weights are written to their ``grad``, which must be zero. ``row_VD``: the item table's."""
        size, device = size_of(inputs), row_VD.device
        arguments = [Input(row_VD, size.rows, varies=True)]
        arguments += [Input(each, len(each)) for each in pack(inputs, size, device)]
        if side_nM is not None:
            arguments.append(Input(side_nM.detach(), size.interactions, varies=True))
        key = (size, len(arguments), "learn")
        (_, *outputs), (rows, *sides) = self._captures.learn(
            key, lambda: _LearnedStep(self._step(size), self._rank_weight), arguments, device
        )  # fmt: skip
        assert rows is not None, "the loss depends on the rows"
        side = sides[0][: len(inputs.row_n)] if sides and sides[0] is not None else None
        return _outputs(inputs, outputs), rows, side

    def _step(self, size: Size) -> _Step:
        return _Step(self._model, size, self._rules, self._backend)


def _outputs(inputs: StepInputs, padded: Sequence[Tensor]) -> StepOutputs:
    """What `_Step` returns, without padding."""
    retrieval, ranking, query, table, logits = padded
    return StepOutputs(retrieval, ranking, query[: len(inputs.choice_S)], table, logits[: len(inputs.target_R)])
