"""Metrics of a pass over a stream: the same code for Headrace and for every rival."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.rivals import Ranker, Retriever
from bench.streams.events import Step, ranks
from model.arrivals import Arrivals
from trainer.examples.batch import JaggedBatch
from trainer.metrics.prequential import RANKERS, SLICES, Predictions, PrequentialMetrics, rank_gains

LATELY = 10_000
NUM_WINDOWS = 24
GAINS = ("hr1", "hr10", "hr50", "ndcg10", "mrr")
Progress = Callable[[int], None]
"""Called with the number of events done."""


def retrieval(rank_A: NDArray[np.int64]) -> dict[str, Any]:
    """Means over all choices, over the last `LATELY`, and HR@10 of equal windows of the stream, first to last."""
    windows = [part for part in np.array_split(rank_A, NUM_WINDOWS) if len(part)]
    return {
        "num": len(rank_A),
        **_means(rank_A),
        "lately": _means(rank_A[-LATELY:]),
        "windows": [round(_means(part)["hr10"], 5) for part in windows],
    }


def _means(rank_A: NDArray[np.int64]) -> dict[str, float]:
    means = rank_gains(rank_A)[1:].mean(axis=1) if len(rank_A) else np.zeros(len(GAINS))
    return {name: round(float(mean), 6) for name, mean in zip(GAINS, means, strict=True)}


def ranking(metrics: PrequentialMetrics) -> dict[str, Any]:
    """NE of all kinds together and of each, over everything and over the last `LATELY`."""
    summary = metrics.summary()
    kinds = {
        kind: {name: found[name] for name in ("rate", "ne", "auc")}
        for kind, found in summary["ranking"].items()
        if kind != "all"
    }
    lately = {kind: found["ne"] for kind, found in summary["ranking_window"].items()}
    return {"num": summary["num_targets"], "ne": summary["ranking"]["all"]["ne"], "kinds": kinds, "lately": lately}


def evaluate_retriever(rival: Retriever, stream: Iterable[Step], progress: Progress) -> NDArray[np.int64]:
    """(A,) ranks of every choice."""
    found, num = list[NDArray[np.int64]](), 0
    for step in stream:
        score_AV = rival.over(step)
        found.append(ranks(step, score_AV))
        num += int(step.batch.is_new_R.sum())
        progress(num)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def evaluate_ranker(
    ranker: Ranker, stream: Iterable[Step], kinds: tuple[str, ...], progress: Progress
) -> dict[str, Any]:
    """See `ranking`."""
    metrics, num = PrequentialMetrics(kinds, LATELY), 0
    for step in stream:
        batch = step.batch
        probability_RK = np.asarray(ranker.over(step), np.float64)
        metrics.add(kinds_alone(probability_RK, batch, metrics.arrivals))
        num += int(batch.is_new_R.sum())
        progress(num)
    return ranking(metrics)


def kinds_alone(probability_RK: NDArray[np.float64], batch: JaggedBatch, arrivals: Arrivals) -> Predictions:
    """Predictions of the kinds of a batch's targets, which ``arrivals`` numbers, with nothing retrieved."""
    return Predictions(
        rank_KS=np.zeros((len(RANKERS), 0), np.int64),
        ranked_S=np.zeros(0, np.bool_),
        slice_XS=np.zeros((len(SLICES), 0), np.bool_),
        domain_S=np.zeros(0, np.int64),
        log_loss_S=np.zeros(0),
        number_R=arrivals.number(batch.key_R, batch.is_new_R),
        probability_RK=probability_RK,
        baseline_RK=probability_RK,
        done_RK=batch.learned_RK > 0,
        is_new_R=batch.is_new_R,
    )
