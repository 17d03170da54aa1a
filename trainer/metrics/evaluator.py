"""Scores predictions, before anything is learned from their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory import MemoryOutcome, Ranks
from kernels.transfer import ToHost
from model.embedding import EmbeddingTable
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch
from trainer.metrics.baseline import PopularityBaseline
from trainer.metrics.prequential import RANKERS, SLICES, UNRANKED, Predictions, PrequentialMetrics

Int64 = NDArray[np.int64]
NEW_ITEM_SIGHTINGS = 10
NEW_USER_INTERACTIONS = 10
HEAD_SHARE = 0.2
COMING = -2
"""The rank of a choice that is not known yet (`trainer.learner.memory_pass`)."""
POPULAR_STEPS = 4
"""The most popular items are ranked in one step of so many, since that takes longer than the rest of the metrics."""


@dataclass(slots=True, eq=False)
class Leaf:
    """Rows of a table that a step reads, and their gradient: autograd's, or one that was computed without it."""

    table: EmbeddingTable
    rows_U: Int64
    values_UD: Tensor
    place_nF: Tensor | None = None
    """Which of them are summed into each interaction's side inputs."""
    direct_UD: Tensor | None = None

    @property
    def gradient_UD(self) -> Tensor | None:  # noqa: N802  (shape suffix)
        """None if nothing depended on them."""
        return self.values_UD.grad if self.direct_UD is None else self.direct_UD


@dataclass(slots=True, eq=False)
class Forward:
    """What losses and metrics need from one forward pass: R targets, S of which are retrieval targets (choices)."""

    query_SD: Tensor
    """Queries of the choices, without gradient, like the table."""
    table_UD: Tensor
    is_whole: bool
    """Whether the table has all items: row u is then row u of the item table."""
    logits_RK: Tensor
    target_row_R: Int64
    retrieval_loss: Tensor
    """Mean over the choices whose item has a row."""
    leaves: list[Leaf]
    ranking_loss: Tensor | None = None
    """Mean over the targets, if already computed."""
    logit_SV: Tensor | None = None
    """The logits of each choice over the whole catalogue, if already computed; then there is no table."""
    has_gradients: bool = False
    """Whether weights and leaves have their gradients already."""
    value_R: Tensor | None = None
    """What is expected of each target's value, if the model predicts them."""
    value_loss: Tensor | None = None
    """Mean over the targets whose value is known."""
    on_host: ToHost | None = None
    """``logits_RK`` and both losses, asked for before a GPU is given more work."""


@dataclass(slots=True, eq=False)
class Ranked:
    """(R, K) the probability of each kind for R targets, and the one from the item's rate alone; (R,) the numbers of
    their interactions (`model.arrivals`)."""

    probability_RK: NDArray[np.float64]
    by_rate_RK: NDArray[np.float64]
    number_R: Int64


@dataclass(slots=True, eq=False)
class Asked:
    """S choices and R targets of a batch whose outcomes are not known yet. ``rank_KS``, ``slice_XS``, ``domain_S``,
    ``done_RK`` and ``is_new_R``: as in `Predictions`, the ranks by popularity alone. ``share_S``: whose ranks count.
    ``batch``: for `Evaluator.on_ranked`; None if nobody asks."""

    rank_KS: Int64
    share_S: NDArray[np.bool_]
    slice_XS: NDArray[np.bool_]
    domain_S: Int64
    done_RK: NDArray[np.bool_]
    is_new_R: NDArray[np.bool_]
    step: int
    batch: JaggedBatch | None


@dataclass(frozen=True, slots=True, eq=False)
class Awaited:
    """What belongs to a choice whose ranks are not known yet. ``rank_K``: by the rankers that have ranked it;
    ``slice_X``: as in `Predictions`. ``batch``: the one that it is a choice of, the ``place``-th, in the ``step``; None
    if that was before a checkpoint."""

    rank_K: Int64
    slice_X: NDArray[np.bool_]
    domain: int
    is_ranked: bool
    place: int
    step: int
    batch: JaggedBatch | None = None


class Evaluator:
    """Compares a batch's predictions, and the baselines', with the outcomes."""

    def __init__(
        self,
        config: TrainerConfig,
        popularity: PopularityBaseline,
        metrics: PrequentialMetrics,
    ) -> None:
        self._config, self._popularity, self.metrics = config, popularity, metrics
        self._bits = np.random.Philox(key=[config.seed + 1, 0])
        self._random, self._first_bits = np.random.Generator(self._bits), self._bits.state
        self.on_ranked: Callable[[JaggedBatch, Int64, int], None] | None = None
        """Called with a batch, the ranks of its choices (-1: not ranked), and the step in which it was predicted."""
        self._awaited: Awaited | None = None

    def ask(self, batch: JaggedBatch, num_known: int, seen_R: Int64, seen_n: Callable[[], Int64], step: int) -> Asked:
        """What can be said before the outcomes of a batch's choices are known.

        For the baselines only the ``num_known`` items compete that had a row before the batch: ``seen_R`` the targets',
        ``seen_n`` those of all its interactions, which not every step needs.
        """
        where_S = batch.target_R[batch.choice_S]
        target_S, share_S = seen_R[batch.choice_S], self._ranked(len(where_S), step)
        rank_KS = np.full((len(RANKERS), len(where_S)), UNRANKED, np.int64)
        if ranks_popular(step):
            asked = np.flatnonzero(share_S)
            first_C = batch.starts_B1[batch.owner_R[batch.choice_S[asked]]]
            popular = self._popularity.ranks(target_S[asked], num_known, seen_n(), first_C, where_S[asked])
            for name, rank_C in zip(("popular", "popular_unseen"), popular, strict=True):
                rank_KS[RANKERS.index(name), asked] = rank_C * (target_S[asked] > 0)
        slice_XS = self._slices(target_S, batch.age_R[batch.choice_S], num_known)
        asker = batch if self.on_ranked is not None else None
        return Asked(
            rank_KS, share_S, slice_XS, batch.domain_n[where_S], batch.learned_RK > 0, batch.is_new_R, step, asker
        )

    def count(self, asked: Asked, predicted: Ranked, choices: MemoryOutcome, earlier: Ranks | None = None) -> None:
        """Add a batch's predictions to the metrics.

        ``choices``: the memory's outcomes of the choices, each predicted before the next was counted; one may be
        `COMING`, to come as ``earlier`` with a later batch.
        """
        if earlier is not None:
            self._count_earlier(earlier)
        rank_KS, is_coming_S = asked.rank_KS, choices.rank_R == COMING
        ranked_S = asked.share_S & (choices.rank_R >= 0)
        if self.on_ranked is not None and asked.batch is not None:
            self.on_ranked(asked.batch, np.where(ranked_S, choices.rank_R, -1), asked.step)
        rank_KS[:, ~(ranked_S | is_coming_S)] = UNRANKED
        by_memory = {"model": choices.rank_R, "network": choices.model_rank_R, "counts": choices.count_rank_R}
        for name, rank_S in by_memory.items():
            np.copyto(rank_KS[RANKERS.index(name)], rank_S, where=ranked_S)
        missed = np.flatnonzero(ranked_S & (choices.rank_R == 0))  # not known, or left out: by the baselines too
        rank_KS[:, missed] = np.minimum(rank_KS[:, missed], 0)
        for at in is_coming_S.nonzero()[0].tolist():
            self._awaited = Awaited(
                rank_KS[:, at], asked.slice_XS[:, at], int(asked.domain_S[at]), bool(asked.share_S[at]), at, asked.step,
                asked.batch,
            )  # fmt: skip
        self.metrics.add(
            Predictions(
                rank_KS=rank_KS,
                ranked_S=ranked_S,
                slice_XS=asked.slice_XS,
                domain_S=asked.domain_S,
                log_loss_S=choices.loss_R.astype(np.float64),
                number_R=predicted.number_R,
                probability_RK=predicted.probability_RK,
                baseline_RK=predicted.by_rate_RK,
                done_RK=asked.done_RK,
                is_new_R=asked.is_new_R,
            )
        )

    def _count_earlier(self, ranks: Ranks) -> None:
        """Add the ranks of a choice that was awaited."""
        awaited, self._awaited = self._awaited, None
        assert awaited is not None, "its choice was coming"
        rank_K = awaited.rank_K.copy()
        for name, rank in (("model", ranks.rank), ("network", ranks.model_rank), ("counts", ranks.count_rank)):
            rank_K[RANKERS.index(name)] = rank
        kept = slice(0, int(awaited.is_ranked))
        self.metrics.add_ranks(
            rank_K[:, None][:, kept], awaited.slice_X[:, None][:, kept], np.array([awaited.domain])[kept]
        )
        self.metrics.add_losses(np.array([ranks.loss]))
        if self.on_ranked is not None and awaited.batch is not None and awaited.is_ranked:
            rank_S = np.full(int(np.count_nonzero(awaited.batch.is_wanted_R)), -1, np.int64)
            rank_S[awaited.place] = ranks.rank
            self.on_ranked(awaited.batch, rank_S, awaited.step)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint: of the choice whose ranks are awaited, if there is one."""
        if (awaited := self._awaited) is None:
            return {}
        others = np.array([awaited.domain, awaited.is_ranked, awaited.place, awaited.step], np.int64)
        return {"rank_K": awaited.rank_K, "slice_X": awaited.slice_X, "others": others}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`; other arrays are ignored."""
        self._awaited = None
        if "others" in state:
            domain, is_ranked, place, step = state["others"].tolist()
            rank_K, slice_X = state["rank_K"].copy(), state["slice_X"].astype(np.bool_)
            self._awaited = Awaited(rank_K, slice_X, domain, bool(is_ranked), place, step)

    def _ranked(self, num_targets: int, step: int) -> NDArray[np.bool_]:
        if self._config.metric_share >= 1.0:
            return np.ones(num_targets, np.bool_)
        self._first_bits["state"]["key"][1] = step  # a new generator takes five times as long
        self._bits.state = self._first_bits
        return self._random.random(num_targets) < self._config.metric_share

    def _slices(self, target_S: Int64, age_S: Int64, num_known: int) -> NDArray[np.bool_]:
        head = self._popularity.at_share(1 - HEAD_SHARE, num_known)
        count_S, known_S = self._popularity.count_of(target_S), target_S > 0
        slice_XS = np.ones((len(SLICES), len(target_S)), np.bool_)
        slice_XS[1] = ~known_S | (count_S < NEW_ITEM_SIGHTINGS)
        slice_XS[2] = age_S < NEW_USER_INTERACTIONS
        slice_XS[3] = known_S & (count_S < head)
        return slice_XS


def ranks_popular(step: int) -> bool:
    """Whether the most popular items are ranked in this step: in one of `POPULAR_STEPS`, evenly spread but without a
    period, by multiples of the golden ratio."""
    return (step * 0x9E3779B1 & 0xFFFF_FFFF) * POPULAR_STEPS < 1 << 32
