"""Other ways for a table's rows to learn than row-wise Adagrad, whose rate falls with every touch: for comparison."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.dirty import CHANGED
from model.embedding import EmbeddingTable
from trainer.learner.step import Learner

Learn = Callable[[NDArray[np.int64], Tensor, float, int], None]
SQUARE_DECAY, EPS = 0.98, 1e-8


def decayed(keep: float) -> Callable[[EmbeddingTable], Learn]:
    """Adagrad whose rows keep this share of their state at each touch."""

    def of(table: EmbeddingTable) -> Learn:
        plain = table.learn

        def learn(rows_U: NDArray[np.int64], grad_UD: Tensor, lr: float, step: int) -> None:
            table.state[torch.from_numpy(rows_U)] *= keep
            plain(rows_U, grad_UD, lr, step)

        return learn

    return of


def adam(lr_ratio: float) -> Callable[[EmbeddingTable], Learn]:
    """Adam's second moment, one number a row, corrected for the row's own number of touches; no first moment, which
    would have to move rows that are not touched. Learns at ``lr_ratio`` times the table's rate."""

    def of(table: EmbeddingTable) -> Learn:
        touches = np.zeros(0, np.int64)

        def learn(rows_U: NDArray[np.int64], grad_UD: Tensor, lr: float, step: int) -> None:
            nonlocal touches
            del step  # rows are float32
            if len(touches) < len(table.state):
                touches = np.concatenate([touches, np.zeros(len(table.state) - len(touches), np.int64)])
            is_touched_U = (grad_UD != 0).any(dim=1)
            rows, grad_UD = torch.from_numpy(rows_U)[is_touched_U], grad_UD[is_touched_U]
            touches[rows.numpy()] += 1
            correction_U = 1.0 - SQUARE_DECAY ** torch.from_numpy(touches[rows.numpy()])
            square_U = table.state[rows] * SQUARE_DECAY + (1 - SQUARE_DECAY) * grad_UD.square().mean(dim=1)
            table.state[rows] = square_U
            step_U = lr_ratio * lr / ((square_U / correction_U).sqrt() + EPS)
            table.weight[rows] -= step_U[:, None].float() * grad_UD
            table.dirty[rows_U] = CHANGED

        return learn

    return of


RULES: dict[str, Callable[[EmbeddingTable], Learn]] = {
    "Adagrad": lambda table: table.learn,
    "Adagrad, state keeps .995": decayed(0.995),
    "Adagrad, state keeps .9": decayed(0.9),
    "Adam-like, .1 of the rate": adam(0.1),
    "Adam-like, .3 of the rate": adam(0.3),
}
"""By name, the trainer's own first."""


def install(learner: Learner, name: str) -> None:
    """Make the tables of a learner learn by this rule."""
    rule = RULES[name]
    for table in learner.tables.values():
        table.learn = rule(table)  # type: ignore[assignment,method-assign]
