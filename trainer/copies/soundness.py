"""Whether a learner's numbers are finite: checked before they are stored or published.

A loss that is not finite shows at once that a step went wrong. But weights can be finite and still useless (1e30 is a
float32, its square is not); so a short sequence of the learner's own items is put through the model too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import structlog
import torch

from trainer.copies.rows import Piece
from trainer.errors import FAILURES, in_words
from trainer.learner.step import Learner, StepReport

log = structlog.get_logger("trainer")

NUM_PROBED = 4


@dataclass(frozen=True, slots=True)
class Unsound:
    """Describes what is not finite."""

    what: str


def unsound_step(report: StepReport) -> Unsound | None:
    """Check a step's losses, which are computed before the step changes anything."""
    for name, loss in (("retrieval loss", report.retrieval_loss), ("ranking loss", report.ranking_loss)):
        if not math.isfinite(loss):
            return Unsound(f"{name} {loss}")
    return None


def unsound_scoring(learner: Learner) -> Unsound | None:
    """Complete the scoring of the last step, which may have failed after the step."""
    try:
        learner.scoring.settle()
    except FAILURES as failure:
        return failed("scoring a step failed", failure)
    return None


def failed(what: str, failure: Exception) -> Unsound:
    """Log what was raised (`FAILURES`), and describe it."""
    log.error(what, exc_info=failure)
    return Unsound(in_words(failure))


@torch.no_grad()
def unsound_learner(learner: Learner) -> Unsound | None:
    """Check the scoring of the last step, the dense weights, the tables, the memory, and what the model predicts with
    them: everything."""
    if (problem := unsound_scoring(learner)) is not None:
        return problem
    for name, table in learner.tables.items():
        if not table.is_finite():
            return Unsound(f"rows of table {name}")
    if not learner.memory.is_finite:
        return Unsound("the memory")
    if not learner.rates.is_finite:
        return Unsound("the rates")
    return unsound_core(learner)


@torch.no_grad()
def unsound_core(learner: Learner) -> Unsound | None:
    """Check everything but the rows, and predictions; rows are checked as they are copied (`unsound_piece`)."""
    for name, parameter in learner.model.named_parameters():
        if not _is_finite(parameter):
            return Unsound(f"dense weights {name}")
    if not all(bool(np.isfinite(each).all()) for each in learner.memory.learned().values()):
        return Unsound("the memory")
    if not learner.rates.is_finite:
        return Unsound("the rates")
    if not torch.isfinite(_probe(learner)).all():
        return Unsound("predictions from these weights")
    return None


def unsound_piece(piece: Piece) -> Unsound | None:
    """Check rows that were copied."""
    for name, column in piece.columns.items():
        if column.dtype.kind == "f" and not math.isfinite(float(column.sum(dtype=np.float64))):
            return Unsound(f"{name} of rows of {piece.region}")
    return None


def _is_finite(values: torch.Tensor) -> bool:
    """Check by one sum, which any NaN or infinity spoils, without an array of booleans."""
    return math.isfinite(float(values.sum()))


def _probe(learner: Learner) -> torch.Tensor:
    """Everything that the model predicts from a few of its own items, one second apart."""
    model, device = learner.model, learner.device
    num_live = learner.items.num_live
    probed = learner.items.live_at(np.arange(max(0, num_live - NUM_PROBED), num_live))
    weight_UD, _ = learner.items.read(np.append(np.zeros(1, np.int64), probed))
    rows_UD = torch.from_numpy(weight_UD).to(device)
    kinds_nK = torch.ones((len(rows_UD), len(learner.model_config.kinds)), device=device)
    value_n = torch.ones(len(rows_UD), device=device)
    item_nM = model.item_inputs(rows_UD, None)
    x_TM = model.interleave(item_nM, model.action_inputs(item_nM, kinds_nK, value_n))
    time_T = 1000 * (1 + torch.arange(2 * len(rows_UD), device=device) // 2)
    offsets = torch.tensor([0, 2 * len(rows_UD)], device=device)
    y_TM = model.encode(x_TM, offsets, time_T, time_T, backend=learner.config.backend)
    query_TD = model.retrieval_query(torch.cat([y_TM, model.start_M[None]]))
    table_UD = model.retrieval_table(rows_UD)
    return torch.cat([model.rank_logits(y_TM, None).flatten(), (query_TD @ table_UD.T).flatten()])
