"""Prequential metrics: every target is predicted before it is learned, and scored here.

Retrieval: HR@1/10/50, NDCG@10, MRR over the whole live catalogue (an item never seen before is a miss, and so is one
that its user has met where such are left out), for the model,
its network and its counts alone, and the most popular items so far, with slices; over everything, and over the last
``window`` targets. Ranking: `trainer.metrics.kinds`. All state is arrays, so a resumed trainer continues to count where
it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.outcomes import score_ranks
from model.arrivals import Arrivals
from trainer.metrics.kinds import KindMetrics
from trainer.metrics.ring import Ring
from trainer.metrics.values import ValueMetrics

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
SLICES = ("all", "new_items", "new_users", "long_tail")
RANKERS = ("model", "popular", "popular_unseen", "network", "counts")
UNRANKED = -1
"""The rank by a ranker that did not rank a target; it does not count for that ranker."""
_SUMS = ("num", "hr1", "hr10", "hr50", "ndcg10", "mrr")
_MAX_DOMAINS = 32


@dataclass(slots=True, eq=False)
class Predictions:
    """Predictions for R targets, S of which are retrieval targets (choices), and their outcomes.

    ``rank_KS``: ranks by `RANKERS` (5, S), 0 = a miss, or `UNRANKED`. ``ranked_S``: which were ranked at all (only a
    share, if the catalogue is large). ``slice_XS``: membership by `SLICES`. ``log_loss_S``: retrieval loss, NaN for an
    unknown item. ``number_R``: the interactions' numbers (`model.arrivals`); ``probability_RK``, ``baseline_RK``:
    predictions for each kind; ``done_RK``: the kinds that arrive now, for an interaction that ``is_new_R`` or for an
    earlier one.
    """

    rank_KS: Int64
    ranked_S: NDArray[np.bool_]
    slice_XS: NDArray[np.bool_]
    domain_S: Int64
    log_loss_S: Float64
    number_R: Int64
    probability_RK: Float64
    baseline_RK: Float64
    done_RK: NDArray[np.bool_]
    is_new_R: NDArray[np.bool_]


def rank_gains(rank: Int64) -> Float64:
    """Ranks of any shape → (6, …): 1, HR@1, HR@10, HR@50, NDCG@10 and reciprocal rank of each; rank 0 is a miss, and
    `UNRANKED` is 0 in all of them."""
    hit, gains = rank > 0, np.zeros((len(_SUMS), *rank.shape))
    safe = np.where(hit, rank, 1)
    gains[0] = rank != UNRANKED
    for at, k in enumerate((1, 10, 50), start=1):
        gains[at] = hit & (safe <= k)
    gains[4] = gains[2] / np.log2(1.0 + safe)
    gains[5] = hit / safe
    return gains


def rank_among(score_V: NDArray[Any], row: int, left_out: NDArray[np.int32] | Sequence[int]) -> int:
    """1 + better competitors + half of the equal ones, rounded up; excluded items and row 0 do not compete."""
    mine = score_V[row]
    better, equal = int((score_V[1:] > mine).sum()), int((score_V[1:] == mine).sum()) - 1
    absent = np.unique(np.asarray(left_out, np.int64))
    absent = absent[(absent != row) & (absent > 0) & (absent < len(score_V))]
    better -= int((score_V[absent] > mine).sum())
    equal -= int((score_V[absent] == mine).sum())
    return 1 + better + (equal + 1) // 2


class PrequentialMetrics:
    """Sums over all targets, and a window of the newest ones. ``arrivals``: what numbers the interactions."""

    def __init__(self, kinds: tuple[str, ...], window: int, arrivals: Arrivals | None = None) -> None:
        self.arrivals = Arrivals() if arrivals is None else arrivals
        self.ranking = KindMetrics(kinds, window, self.arrivals)
        self.ranks = np.zeros((len(RANKERS), len(SLICES), len(_SUMS)))
        self.domains: dict[int, Float64] = {}
        self.log_loss = np.zeros(2)
        self.rank_window = Ring(window, len(RANKERS))
        self.values = ValueMetrics()

    def add(self, predictions: Predictions) -> None:
        """Add one batch."""
        rank_KS, slice_XS, domain_S = predictions.rank_KS, predictions.slice_XS, predictions.domain_S
        if not predictions.ranked_S.all():
            ranked = np.flatnonzero(predictions.ranked_S)
            rank_KS, slice_XS = rank_KS.take(ranked, axis=1), slice_XS.take(ranked, axis=1)
            domain_S = domain_S[ranked]
        self.add_ranks(rank_KS, slice_XS, domain_S)
        self.add_losses(predictions.log_loss_S)
        self.ranking.add(
            predictions.number_R,
            predictions.probability_RK,
            predictions.baseline_RK,
            predictions.done_RK,
            predictions.is_new_R,
        )

    def add_losses(self, log_loss_S: Float64) -> None:
        """Add choices' losses; NaN for those that have none."""
        known = np.isfinite(log_loss_S)
        self.log_loss += (known.sum(), log_loss_S[known].sum())

    def add_ranks(self, rank_KS: Int64, slice_XS: NDArray[np.bool_], domain_S: Int64) -> None:
        """Add ranked choices: see `Predictions`."""
        score_ranks(self.ranks, rank_KS, slice_XS, UNRANKED)
        self.rank_window.extend(rank_KS.T)
        if domain_S.any():
            self._add_domains(rank_KS, domain_S)

    def _add_domains(self, rank_KS: Int64, domain_S: Int64) -> None:
        gains = rank_gains(rank_KS)
        for domain in np.unique(domain_S[domain_S != 0]).tolist():
            if domain in self.domains or len(self.domains) < _MAX_DOMAINS:
                sums = self.domains.setdefault(domain, np.zeros((len(RANKERS), len(_SUMS))))
                sums += gains[:, :, domain_S == domain].sum(axis=2).T

    def summary(self) -> dict[str, Any]:
        """Plain numbers for people, the lag topic and manifests; None where there is nothing to average."""
        slices = {name: rank_report(self.ranks[:, index]) for index, name in enumerate(SLICES)}
        window = rank_gains(self.rank_window.view().T.astype(np.int64)).sum(axis=2).T
        return {
            "num_targets": self.ranking.num,
            "retrieval": slices,
            "domains": {str(domain): rank_report(sums) for domain, sums in sorted(self.domains.items())},
            "retrieval_window": rank_report(window),
            "log_perplexity": _ratio(self.log_loss[1], self.log_loss[0]),
            "ranking": self.ranking.report(),
            "ranking_window": self.ranking.window_report(),
            "num_too_late": self.ranking.num_too_late,
            "values": self.values.report(),
        }

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint."""
        names = sorted(self.domains)
        return {
            "ranks": self.ranks,
            "log_loss": self.log_loss,
            "domain_names": np.array(names, np.int64),
            "domain_sums": np.array([self.domains[name] for name in names]).reshape(-1, len(RANKERS), len(_SUMS)),
            "rank_window": self.rank_window.rows,
            "values": self.values.sums,
            "places": np.array([self.rank_window.next, self.rank_window.filled]),
            **self.ranking.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`. A window of another size starts empty."""
        self.ranks, self.log_loss = state["ranks"].copy(), state["log_loss"].copy()
        self.ranking.load_state_dict(state)
        if "values" in state:  # not in checkpoints of earlier builds
            self.values.sums = state["values"].copy()
        self.domains = dict(zip(state["domain_names"].tolist(), state["domain_sums"].copy(), strict=True))
        if state["rank_window"].shape == self.rank_window.rows.shape:
            self.rank_window.rows = state["rank_window"].copy()
            self.rank_window.next, self.rank_window.filled = state["places"][:2].tolist()


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def rank_report(sums_KS: Float64, rankers: Sequence[str] = RANKERS) -> dict[str, Any]:
    """Averages of `rank_gains` from their sums, (K, 6), for K rankers."""
    report: dict[str, Any] = {"num": int(sums_KS[0, 0])}
    for ranker, sums in zip(rankers, sums_KS, strict=True):
        report[ranker] = {name: _ratio(value, sums[0]) for name, value in zip(_SUMS[1:], sums[1:], strict=True)}
    return report
