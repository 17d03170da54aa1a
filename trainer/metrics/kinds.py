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

from model.arrivals import MOST_REMEMBERED, Arrivals

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
NUM_AUC_BINS = 2048
_SUMS = ("entropy", "calibration", "auc_bins")


def binary_log_loss(probability: NDArray[np.floating[Any]], label: NDArray[Any] | np.bool_) -> Float64:
    """Natural-log loss, safe at 0 and 1."""
    given = probability.astype(np.float64)
    return np.asarray(-np.log(np.clip(np.where(label, given, 1.0 - given), 1e-7, 1 - 1e-7)))


class FirstPredictions:
    """The predictions for the newest interactions, made when they were new, and the kinds that they have now.

    A ring: the interaction with number n (`Arrivals.number`) is in row n modulo its length.
    """

    def __init__(self, most: int, num_kinds: int) -> None:
        self.model = np.zeros((most, num_kinds), np.float32)
        self.baseline = np.zeros((most, num_kinds), np.float32)
        self.done = np.zeros((most, num_kinds), np.bool_)
        self.end = self.filled = 0
        """The next number, and how many before it are here."""

    def extend(self, number_R: Int64, model_RK: Float32, baseline_RK: Float32, done_RK: Bools) -> None:
        """Add the interactions with the next numbers, in any order, overwriting the oldest."""
        if not len(number_R):
            return
        most, self.end = len(self.done), int(number_R.max()) + 1
        is_newest_R = number_R >= self.end - most
        rows = number_R[is_newest_R] % most
        self.model[rows], self.baseline[rows] = model_RK[is_newest_R], baseline_RK[is_newest_R]
        self.done[rows] = done_RK[is_newest_R]
        self.filled = min(most, self.filled + len(rows))

    def find(self, number_R: Int64) -> Int64:
        """The row of each interaction; -1 if it is forgotten."""
        is_here_R = (number_R >= self.end - self.filled) & (number_R < self.end)
        return np.where(is_here_R, number_R % len(self.done), -1)

    def newest(self, num: int, lag: int = 0) -> Int64:
        """The rows of the last ``num`` interactions before the newest ``lag``, the newest first."""
        return (self.end - 1 - np.arange(min(lag, self.filled), min(lag + num, self.filled))) % len(self.done)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The rows in use, for a checkpoint."""
        columns = {f"first_{name}": getattr(self, name)[: self.end] for name in ("model", "baseline", "done")}
        return columns | {"first_span": np.array([self.end, self.filled])}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`. A ring of another length takes what fits."""
        self.end, filled = state["first_span"].tolist()
        self.filled = min(filled, len(self.done))
        rows = self.newest(self.filled)
        for name in ("model", "baseline", "done"):
            theirs = state[f"first_{name}"]
            getattr(self, name)[rows] = theirs[(self.end - 1 - np.arange(self.filled)) % max(1, len(theirs))]


class KindMetrics:
    """Sums over all interactions, and a window of ``window`` of the newest; ``arrivals`` numbers them."""

    def __init__(self, kinds: tuple[str, ...], window: int, arrivals: Arrivals) -> None:
        self.kinds, self._window, self._arrivals = kinds, window, arrivals
        self.entropy = np.zeros((len(kinds), 4))  # count, done, model's loss, baseline's loss
        self.calibration = np.zeros((len(kinds), 2))  # expected, done
        self.auc_bins = np.zeros((len(kinds), 2, NUM_AUC_BINS), np.int64)
        self.num_too_late = 0
        self.first = FirstPredictions(window + MOST_REMEMBERED, len(kinds))

    @property
    def num(self) -> int:
        """How many interactions were counted."""
        return int(self.entropy[0, 0])

    def add(self, number_R: Int64, model_RK: Float64, baseline_RK: Float64, done_RK: Bools, is_new_R: Bools) -> None:
        """Count a batch: new interactions with the kinds that they have, and late kinds of earlier ones.

        ``number_R``: the interactions' numbers; the batch's predictions for earlier ones are ignored.
        """
        new = np.flatnonzero(is_new_R)
        model, baseline = model_RK[new].astype(np.float32), baseline_RK[new].astype(np.float32)
        self.entropy += _entropy_sums(model, baseline, done_RK[new])
        self.calibration += _expected_and_done(model, done_RK[new])
        _count_auc_bins(self.auc_bins, model, done_RK[new], np.ones_like(done_RK[new]))
        self.first.extend(number_R[new], model, baseline, done_RK[new])
        late = np.flatnonzero(~is_new_R)
        if len(late):
            self._add_late(self.first.find(number_R[late]), done_RK[late])

    def _add_late(self, row_R: Int64, done_RK: Bools) -> None:
        self.num_too_late += int((row_R < 0).sum())
        rows, done_RK = row_R[row_R >= 0], done_RK[row_R >= 0]
        model, baseline, came_RK = self.first.model[rows], self.first.baseline[rows], done_RK & ~self.first.done[rows]
        self.first.done[rows] |= done_RK
        num_came_K = came_RK.sum(axis=0)
        self.entropy[:, 1] += num_came_K
        self.calibration[:, 1] += num_came_K
        for column, part in ((2, model), (3, baseline)):
            change = binary_log_loss(part, np.True_) - binary_log_loss(part, np.False_)
            self.entropy[:, column] += np.where(came_RK, change, 0.0).sum(axis=0)
        _count_auc_bins(self.auc_bins, model, np.ones_like(came_RK), came_RK)
        _count_auc_bins(self.auc_bins, model, np.zeros_like(came_RK), came_RK, sign=-1)

    def report(self) -> dict[str, Any]:
        """The metrics over everything so far: see `_report`."""
        aucs = [_binned_auc(bins) for bins in self.auc_bins]
        return _report(self.kinds, self.entropy, self.calibration, aucs)

    def window_report(self) -> dict[str, Any]:
        """The metrics over the window."""
        model, baseline, done = self._newest()
        bins = np.zeros((len(self.kinds), 2, NUM_AUC_BINS), np.int64)
        _count_auc_bins(bins, model, done, np.ones_like(done))
        aucs = [_binned_auc(each) for each in bins]
        return _report(self.kinds, _entropy_sums(model, baseline, done), _expected_and_done(model, done), aucs)

    def window_calibration(self) -> float | None:
        """Predicted over observed, for all kinds together, over the window; None before anything was observed."""
        model, _, done = self._newest()
        expected, came = _expected_and_done(model, done).sum(axis=0).tolist()
        return _ratio(expected, came)

    def _newest(self) -> tuple[Float32, Float32, Bools]:
        rows = self.first.newest(self._window, min(MOST_REMEMBERED, self._arrivals.lag))
        return self.first.model[rows], self.first.baseline[rows], self.first.done[rows]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint."""
        sums = {name: getattr(self, name) for name in _SUMS}
        return {**sums, "num_too_late": np.array([self.num_too_late]), **self.first.state_dict()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`.

        Earlier builds found first predictions by keys of their own: late kinds of those interactions are not counted.
        """
        for name in _SUMS:
            setattr(self, name, state[name].copy())
        self.num_too_late = int(state["num_too_late" if "num_too_late" in state else "late_counts"][0])
        if "first_span" in state:
            self.first.load_state_dict(state)


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


def _count_auc_bins(bins_K2B: Int64, model_RK: Float32, done_RK: Bools, counts_RK: Bools, sign: int = 1) -> None:
    """Add ``sign`` to the bins of probabilities, without and with each kind, where ``counts_RK``."""
    bins_RK = np.minimum((model_RK.astype(np.float64) * NUM_AUC_BINS).astype(np.int64), NUM_AUC_BINS - 1)
    places_RK = (2 * np.arange(model_RK.shape[1]) + done_RK) * NUM_AUC_BINS + bins_RK
    np.add.at(bins_K2B.reshape(-1), places_RK[counts_RK], sign)


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
