"""Ranking metrics with late outcomes: each interaction is predicted once, when it is new, and its kinds are compared
with that prediction, whenever they arrive.

Normalised entropy (log loss over the entropy of the average rate; He et al., ADKDD 2014), AUC and calibration
(predicted over observed) of each kind, over everything and over the newest interactions. A kind counts as absent until
it arrives; then the sums become what they would be if it had been there at once. The window ends where most late kinds
have arrived (`model.arrivals`); otherwise a model that is right about kinds still to come would seem to predict too
much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.outcomes import KindCounts, score_kinds
from model.arrivals import MOST_REMEMBERED, Arrivals

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
NUM_AUC_BINS = 2048
_SUMS = {"entropy": "entropy_K4", "calibration": "calibration_K2", "auc_bins": "bins_K2B"}
"""Names in checkpoints."""
_COLUMNS = ("model", "baseline", "done")


def binary_log_loss(probability: NDArray[np.floating[Any]], label: NDArray[Any] | np.bool_) -> Float64:
    """Natural-log loss, safe at 0 and 1."""
    given = probability.astype(np.float64)
    return np.asarray(-np.log(np.clip(np.where(label, given, 1.0 - given), 1e-7, 1 - 1e-7)))


class KindMetrics:
    """Sums over all interactions, and a window of ``window`` of the newest; ``arrivals`` numbers them."""

    def __init__(self, kinds: tuple[str, ...], window: int, arrivals: Arrivals) -> None:
        self.kinds, self._window, self._arrivals = kinds, window, arrivals
        self.counts = KindCounts.empty(len(kinds), NUM_AUC_BINS, window + MOST_REMEMBERED)

    @property
    def num(self) -> int:
        """How many interactions were counted."""
        return int(self.counts.entropy_K4[0, 0])

    @property
    def num_too_late(self) -> int:
        """How many outcomes came when their interactions were forgotten."""
        return int(self.counts.span_3[2])

    def add(self, number_R: Int64, model_RK: Float64, baseline_RK: Float64, done_RK: Bools, is_new_R: Bools) -> None:
        """Count a batch: new interactions with the kinds that they have, and late kinds of earlier ones.

        ``number_R``: the interactions' numbers; the batch's predictions for earlier ones are ignored. Raises ValueError
        for what is no probability.
        """
        score_kinds(self.counts, number_R, model_RK, baseline_RK, done_RK, is_new_R)

    def report(self) -> dict[str, Any]:
        """The metrics over everything so far: see `_report`."""
        aucs = [_binned_auc(bins) for bins in self.counts.bins_K2B]
        return _report(self.kinds, self.counts.entropy_K4, self.counts.calibration_K2, aucs)

    def window_report(self) -> dict[str, Any]:
        """The metrics over the window."""
        model, baseline, done = self._newest()
        aucs = [_binned_auc(bins) for bins in _auc_bins(model, done)]
        return _report(self.kinds, _entropy_sums(model, baseline, done), _expected_and_done(model, done), aucs)

    def window_calibration(self) -> float | None:
        """Predicted over observed, for all kinds together, over the window; None before anything was observed."""
        model, _, done = self._newest()
        expected, came = _expected_and_done(model, done).sum(axis=0).tolist()
        return _ratio(expected, came)

    def _newest(self) -> tuple[Float32, Float32, Bools]:
        counts = self.counts
        rows = self._rows(self._window, min(MOST_REMEMBERED, self._arrivals.lag))
        return counts.model_PK[rows], counts.baseline_PK[rows], counts.done_PK[rows]

    def _rows(self, num: int, lag: int = 0) -> Int64:
        """Where the last ``num`` interactions before the newest ``lag`` are, the newest first."""
        end, filled, _ = self.counts.span_3.tolist()
        numbers = end - 1 - np.arange(min(lag, filled), min(lag + num, filled))
        return np.asarray(numbers % len(self.counts.done_PK))

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint, of the ring the rows in use."""
        counts, (end, filled, num_too_late) = self.counts, self.counts.span_3.tolist()
        columns = {f"first_{name}": getattr(counts, f"{name}_PK")[:end] for name in _COLUMNS}
        sums = {name: getattr(counts, field) for name, field in _SUMS.items()}
        return {**sums, **columns, "num_too_late": np.array([num_too_late]), "first_span": np.array([end, filled])}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`. A ring of another length takes what fits.

        Earlier builds found first predictions by keys of their own: late kinds of those interactions are not counted.
        """
        counts = self.counts
        for name, field in _SUMS.items():
            setattr(counts, field, state[name].copy())
        counts.span_3[2] = state["num_too_late" if "num_too_late" in state else "late_counts"][0]
        if "first_span" not in state:
            return
        end, filled = state["first_span"].tolist()
        counts.span_3[:2] = end, min(filled, len(counts.done_PK))
        rows, back = self._rows(filled), np.arange(counts.span_3[1])
        for name in _COLUMNS:
            theirs = state[f"first_{name}"]
            getattr(counts, f"{name}_PK")[rows] = theirs[(end - 1 - back) % max(1, len(theirs))]


def _entropy_sums(model_RK: Float32, baseline_RK: Float32, done_RK: Bools) -> Float64:
    """(K, 4) how many interactions, how many have the kind, and the losses of the two predictions."""
    sums_K4 = np.empty((done_RK.shape[1], 4))
    sums_K4[:, 0] = len(done_RK)
    sums_K4[:, 1] = done_RK.sum(axis=0)
    sums_K4[:, 2:] = binary_log_loss(np.stack([model_RK, baseline_RK]), done_RK).sum(axis=1).T
    return sums_K4


def _expected_and_done(model_RK: Float32, done_RK: Bools) -> Float64:
    """(K, 2) how many interactions were predicted to have each kind when they were new, and how many have it now."""
    return np.stack([model_RK.sum(axis=0, dtype=np.float64), done_RK.sum(axis=0, dtype=np.float64)], axis=1)


def _auc_bins(model_RK: Float32, done_RK: Bools) -> Int64:
    """(K, 2, B) how many interactions without and with each kind there are, by the probability of it."""
    num_kinds = model_RK.shape[1]
    bins_RK = np.minimum((model_RK.astype(np.float64) * NUM_AUC_BINS).astype(np.int64), NUM_AUC_BINS - 1)
    places_RK = (2 * np.arange(num_kinds) + done_RK) * NUM_AUC_BINS + bins_RK
    counts = np.bincount(places_RK.ravel(), minlength=2 * num_kinds * NUM_AUC_BINS)
    return counts.reshape(num_kinds, 2, NUM_AUC_BINS)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _binned_auc(bins: Int64) -> float | None:
    """AUC from counts of negatives and positives by score bin; ties within a bin count half."""
    negative, positive = bins.astype(np.float64)
    below = np.cumsum(negative) - negative
    pairs = positive.sum() * negative.sum()
    return _ratio(float((positive * (below + negative / 2)).sum()), float(pairs))


def _report(
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
