"""Prequential metrics: every target is predicted before it is learned, and scored here.

Retrieval: HR@1/10/50, NDCG@10, MRR over the whole live catalogue (an item never seen before is a miss), for the model
and for the most popular items so far, with slices. Ranking: normalised entropy (log loss over the entropy of the
average rate; He et al., ADKDD 2014), AUC and calibration (predicted over observed) of each kind, on the outcomes that
have arrived so far. Each over everything, and over the last ``window`` targets. All state is arrays, so a resumed
trainer continues to count where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
SLICES = ("all", "new_items", "new_users", "long_tail")
RANKERS = ("model", "popular", "popular_unseen", "network", "counts")
NUM_AUC_BINS = 2048
_SUMS = ("num", "hr1", "hr10", "hr50", "ndcg10", "mrr")
_MAX_DOMAINS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predictions for R targets, S of which are retrieval targets (choices), and their outcomes.

    ``rank_KS``: ranks by `RANKERS` (5, S), 0 = a miss. ``ranked_S``: which were ranked at all (only a share, if the
    catalogue is large). ``slice_XS``: membership by `SLICES`. ``log_loss_S``: retrieval loss, NaN for an unknown item.
    ``probability_RK``, ``baseline_RK``: of each kind; ``outcome_RK``: see `outcomes`.
    """

    rank_KS: Int64
    ranked_S: NDArray[np.bool_]
    slice_XS: NDArray[np.bool_]
    domain_S: Int64
    log_loss_S: Float64
    probability_RK: Float64
    baseline_RK: Float64
    outcome_RK: NDArray[np.float32]


LATER = 2.0
"""An outcome: the kind arrived late, for an interaction that was counted without it."""


def outcomes(learned_RK: NDArray[np.float32], is_new_R: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(R, K) 1 if a new interaction has the kind, 0 if it does not (yet), `LATER` for a late kind of an earlier
    interaction, NaN for the kinds that this step says nothing about."""
    return np.where(is_new_R[:, None], learned_RK, np.where(learned_RK > 0, LATER, np.nan)).astype(np.float32)


def rank_gains(rank: Int64) -> Float64:
    """Ranks of any shape → (6, …): 1, HR@1, HR@10, HR@50, NDCG@10 and reciprocal rank of each; rank 0 is a miss."""
    hit = rank > 0
    safe = np.where(hit, rank, 1)
    ndcg = np.where(hit & (safe <= 10), 1.0 / np.log2(1.0 + safe), 0.0)
    return np.stack([np.ones(rank.shape), *(hit & (safe <= k) for k in (1, 10, 50)), ndcg, hit / safe])


def binary_log_loss(probability: Float64, label: NDArray[Any] | np.bool_) -> Float64:
    """Natural-log loss, safe at 0 and 1."""
    clipped = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.asarray(-np.where(label, np.log(clipped), np.log1p(-clipped)))


class Ring:
    """The last ``size`` rows of those appended."""

    def __init__(self, size: int, width: int) -> None:
        self.rows, self.next, self.filled = np.zeros((size, width), np.float32), 0, 0

    def extend(self, rows: NDArray[Any]) -> None:
        """Append rows, overwriting the oldest."""
        rows = rows[-len(self.rows) :]
        where = (self.next + np.arange(len(rows))) % len(self.rows)
        self.rows[where] = rows
        self.next = int((self.next + len(rows)) % len(self.rows))
        self.filled = min(len(self.rows), self.filled + len(rows))

    def view(self) -> NDArray[np.float32]:
        """The rows kept, in no particular order."""
        return self.rows[: self.filled]


class PrequentialMetrics:
    """Sums over all targets, and a window of the newest ones."""

    def __init__(self, kinds: tuple[str, ...], window: int) -> None:
        self.kinds = kinds
        num_kinds = len(kinds)
        self.ranks = np.zeros((len(RANKERS), len(SLICES), len(_SUMS)))
        self.domains: dict[int, Float64] = {}
        self.log_loss = np.zeros(2)
        self.entropy = np.zeros((num_kinds, 4))  # count, done, model's loss, baseline's loss
        self.calibration = np.zeros((num_kinds, 2))  # expected, done
        self.auc_bins = np.zeros((num_kinds, 2, NUM_AUC_BINS), np.int64)
        self.rank_window = Ring(window, len(RANKERS))
        self.kind_window = Ring(window, 3 * num_kinds)

    def add(self, predictions: Predictions) -> None:
        """Add one batch."""
        self._add_ranks(predictions)
        known = np.isfinite(predictions.log_loss_S)
        self.log_loss += (known.sum(), predictions.log_loss_S[known].sum())
        model, base, outcome = predictions.probability_RK, predictions.baseline_RK, predictions.outcome_RK
        self.entropy += _kind_sums(model, base, outcome)
        self.calibration += _expected_and_done(model, outcome)
        _count_auc_bins(self.auc_bins, model, outcome)
        self.kind_window.extend(np.concatenate([model, base, outcome], axis=1))

    def _add_ranks(self, predictions: Predictions) -> None:
        ranked = predictions.ranked_S
        rank_KS, member = predictions.rank_KS[:, ranked], predictions.slice_XS[:, ranked].astype(np.float64)
        gains = rank_gains(rank_KS)
        self.ranks += (gains @ member.T).transpose(1, 2, 0)
        self.rank_window.extend(rank_KS.T)
        domain_S = predictions.domain_S[ranked]
        for domain in np.unique(domain_S[domain_S != 0]).tolist():
            if domain in self.domains or len(self.domains) < _MAX_DOMAINS:
                sums = self.domains.setdefault(domain, np.zeros((len(RANKERS), len(_SUMS))))
                sums += gains[:, :, domain_S == domain].sum(axis=2).T

    def summary(self) -> dict[str, Any]:
        """Plain numbers for people, the lag topic and manifests; None where there is nothing to average."""
        slices = {name: _rank_report(self.ranks[:, index]) for index, name in enumerate(SLICES)}
        window = rank_gains(self.rank_window.view().T.astype(np.int64)).sum(axis=2).T
        rows, num_kinds = self.kind_window.view().astype(np.float64), len(self.kinds)
        model, base, outcome = rows[:, :num_kinds], rows[:, num_kinds : 2 * num_kinds], rows[:, 2 * num_kinds :]
        return {
            "num_targets": int(self.entropy[0, 0]),
            "retrieval": slices,
            "domains": {str(domain): _rank_report(sums) for domain, sums in sorted(self.domains.items())},
            "retrieval_window": _rank_report(window),
            "log_perplexity": _ratio(self.log_loss[1], self.log_loss[0]),
            "ranking": _kind_report(
                self.kinds, self.entropy, self.calibration, [_binned_auc(bins) for bins in self.auc_bins]
            ),
            "ranking_window": _kind_report(
                self.kinds,
                _kind_sums(model, base, outcome),
                _expected_and_done(model, outcome),
                [_binned_auc(bins) for bins in _auc_bins(model, outcome)],
            ),
        }

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint."""
        names = sorted(self.domains)
        return {
            "ranks": self.ranks,
            "log_loss": self.log_loss,
            "entropy": self.entropy,
            "calibration": self.calibration,
            "auc_bins": self.auc_bins,
            "domain_names": np.array(names, np.int64),
            "domain_sums": np.array([self.domains[name] for name in names]).reshape(-1, len(RANKERS), len(_SUMS)),
            "rank_window": self.rank_window.rows,
            "kind_window": self.kind_window.rows,
            "places": np.array(
                [self.rank_window.next, self.rank_window.filled, self.kind_window.next, self.kind_window.filled]
            ),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`. A window of another size starts empty."""
        for name in ("ranks", "log_loss", "entropy", "auc_bins"):
            setattr(self, name, state[name].copy())
        if "calibration" in state:  # older checkpoints have none
            self.calibration = state["calibration"].copy()
        self.domains = dict(zip(state["domain_names"].tolist(), state["domain_sums"].copy(), strict=True))
        if state["rank_window"].shape == self.rank_window.rows.shape:
            places = state["places"].tolist()
            self.rank_window.rows, self.kind_window.rows = state["rank_window"].copy(), state["kind_window"].copy()
            self.rank_window.next, self.rank_window.filled, self.kind_window.next, self.kind_window.filled = places


def _kind_sums(model_RK: Float64, base_RK: Float64, outcome_RK: NDArray[np.floating[Any]]) -> Float64:
    """(K, 4) how many interactions, how many had the kind, and the losses of the two predictions.

    A late kind counts as if it had been there, and the loss counted without it is subtracted, both by the present
    prediction: so the sums become those of the final outcomes once these have arrived.
    """
    later, positive = outcome_RK == LATER, outcome_RK > 0.5
    counted = np.isfinite(outcome_RK) & ~later
    sums = [counted.sum(axis=0, dtype=np.float64), positive.sum(axis=0, dtype=np.float64)]
    for part_RK in (model_RK, base_RK):
        loss_RK = np.where(counted | later, binary_log_loss(part_RK, positive), 0.0)
        sums.append((loss_RK - np.where(later, binary_log_loss(part_RK, np.False_), 0.0)).sum(axis=0))
    return np.stack(sums, axis=1)


def _expected_and_done(model_RK: Float64, outcome_RK: NDArray[np.floating[Any]]) -> Float64:
    """(K, 2) how many interactions were predicted to have each kind when they were new, and how many have it now."""
    counted = np.isfinite(outcome_RK) & (outcome_RK != LATER)
    return np.stack([np.where(counted, model_RK, 0.0).sum(axis=0), (outcome_RK > 0.5).sum(axis=0)], axis=1)


def _auc_bins(model_RK: Float64, outcome_RK: NDArray[np.floating[Any]]) -> Int64:
    """(K, 2, bins) how many interactions without and with each kind got a probability in each bin."""
    bins_K2B = np.zeros((model_RK.shape[1], 2, NUM_AUC_BINS), np.int64)
    _count_auc_bins(bins_K2B, model_RK, outcome_RK)
    return bins_K2B


def _count_auc_bins(bins_K2B: Int64, model_RK: Float64, outcome_RK: NDArray[np.floating[Any]]) -> None:
    """Add to ``bins_K2B``; a late kind moves from the counts without to those with it."""
    later = outcome_RK == LATER
    bins_RK = np.minimum((model_RK * NUM_AUC_BINS).astype(np.int64), NUM_AUC_BINS - 1)
    places_RK = (2 * np.arange(model_RK.shape[1]) + (outcome_RK > 0.5)) * NUM_AUC_BINS + bins_RK
    flat = bins_K2B.reshape(-1)
    np.add.at(flat, places_RK[np.isfinite(outcome_RK)], 1)
    np.subtract.at(flat, places_RK[later] - NUM_AUC_BINS, 1)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _rank_report(sums_KS: Float64) -> dict[str, Any]:
    report: dict[str, Any] = {"num": int(sums_KS[0, 0])}
    for ranker, sums in zip(RANKERS, sums_KS, strict=True):
        report[ranker] = {name: _ratio(value, sums[0]) for name, value in zip(_SUMS[1:], sums[1:], strict=True)}
    return report


def _binned_auc(bins: Int64) -> float | None:
    """AUC from counts of negatives and positives by score bin; ties within a bin count half."""
    negative, positive = bins.astype(np.float64)
    below = np.cumsum(negative) - negative
    pairs = positive.sum() * negative.sum()
    return _ratio(float((positive * (below + negative / 2)).sum()), float(pairs))


def _kind_report(
    kinds: tuple[str, ...], sums_K4: Float64, calibration_K2: Float64, aucs: list[float | None]
) -> dict[str, Any]:
    """By kind, and ``all``: summed losses over summed entropies, of kinds whose rate is neither 0 nor 1."""
    report: dict[str, Any] = {}
    total = np.zeros(3)
    for index, (kind, auc) in enumerate(zip(kinds, aucs, strict=True)):
        num, done, model, base = sums_K4[index].tolist()
        expected, came = calibration_K2[index].tolist()
        rate = done / num if num else 0.0
        entropy = -num * (rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0.0 < rate < 1.0 else 0.0
        report[kind] = {
            "rate": _ratio(done, num),
            "ne": _ratio(model, entropy),
            "ne_baseline": _ratio(base, entropy),
            "auc": auc,
            "calibration": _ratio(expected, came),
        }
        total += (model, base, entropy) if entropy > 0 else (0.0, 0.0, 0.0)
    report["all"] = {"ne": _ratio(total[0], total[2]), "ne_baseline": _ratio(total[1], total[2])}
    return report
