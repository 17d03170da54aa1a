"""`python -m bench deltas [--quick]`: the size of deltas, extrapolated to a billion items and a hundred GPUs.

Measured: steps of 512 users on a catalogue of 200,000 items, and the resulting delta, rounded and compressed as it is
published. Predicted: how many rows change, from targets and the contexts before them (with the popularity from which
`bench scale` draws items) and from negatives. The first row says how accurate that is. Then both are extrapolated to
larger deployments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

from bench.growth import grown
from bench.scale import CONFIG, NUM_USERS, Traffic
from bench.timing import Row, row
from model.dirty import UNPUBLISHED, is_dirty
from trainer.learner.step import Learner
from trainer.versions.collection import Collection
from trainer.versions.rounding import Rounding

NUM_ITEMS, USERS_A_STEP, NUM_STEPS = 200_000, 512, 40
POPULARITY = 1 / 3
"""One of the i most popular of V items is chosen with probability (i / V) ** POPULARITY."""
GAP_S = 5.0
"""Time between a user's actions. If a user acts several times in a version's interval, the context counts once."""
LINK_MB_S, PARTITION_MB_S = 100.0, 20.0
"""The assumed capacity, for versions, of a server's link and of one partition of a topic."""


@dataclass(frozen=True)
class Deployment:
    """A deployment in which ``num_gpus`` ranks share each step. A version covers ``version_s``."""

    num_items: float
    actions_s: float
    num_gpus: int
    partitions: int
    users_a_step: int
    version_s: float


DEPLOYMENTS = (
    Deployment(1e6, 1e3, 1, 4, 32, 1.25),
    Deployment(1e7, 1e4, 4, 16, 512, 1.25),
    Deployment(1e8, 1e5, 20, 128, 4096, 5),
    Deployment(1e9, 1e6, 100, 1000, 32_768, 10),
    Deployment(1e9, 1e6, 100, 1000, 32_768, 60),
)


def distinct_rows(num_items: float, chosen: float, drawn: float) -> float:
    """How many rows are touched by ``chosen`` choices by popularity and ``drawn`` uniform ones: the sum over items of
    the probability of at least one, in bins of items of about the same popularity."""
    edges: NDArray[np.float64] = np.unique(np.floor(np.geomspace(1, num_items + 1, 4000))) - 1
    num_B, share_B = np.diff(edges), np.diff((edges / num_items) ** POPULARITY)
    expected_B = chosen * share_B / num_B + drawn / num_items
    return float((num_B * -np.expm1(-expected_B)).sum())


def measured(num_items: int, num_steps: int) -> tuple[int, float]:
    """How many rows of the table some steps change, and the bytes of their delta per row."""
    learner, _ = grown(num_items)
    rounding, traffic = Rounding(), Traffic(num_items, USERS_A_STEP)
    traffic.restore(learner.histories)
    published(learner, rounding, whole=True)
    for _ in range(num_steps):
        learner.step(traffic.poll(0.0))
    num_rows = int(np.count_nonzero(is_dirty(learner.items.dirty[: learner.items.num_rows], UNPUBLISHED)))
    return num_rows, published(learner, rounding, whole=False) / num_rows


def published(learner: Learner, rounding: Rounding, *, whole: bool) -> int:
    """The bytes of a version on the broker."""
    collection = Collection(learner, whole=whole)
    while not collection.advance(1 << 40):
        pass
    chunks = collection.cut(learner, rounding)().chunks(CONFIG.chunk_bytes)
    return sum(len(zstandard.compress(bytes(chunk))) for chunk in chunks)


def extrapolated(to: Deployment, row_bytes: float) -> list[Row]:
    """The rows about a larger deployment's deltas."""
    targets = to.actions_s * to.version_s
    users = targets / max(1.0, to.version_s / GAP_S)
    drawn = targets / to.users_a_step * CONFIG.num_negatives
    num_rows = distinct_rows(to.num_items, targets + users * CONFIG.max_train_context, drawn)
    version_mb = num_rows * row_bytes / 1e6
    topic_mb_s = version_mb / to.version_s
    label = f"{to.num_items:,.0f} items, {to.actions_s:,.0f} actions/s, a version every {to.version_s:g} s"
    rank_ms = 1000 * to.users_a_step / to.actions_s
    return [
        row(f"{label}: a delta", version_mb, "MB", note=f"{num_rows:,.0f} rows, {version_mb / 0.9:,.0f} chunks"),
        row(f"{label}: the weights topic", topic_mb_s, "MB/s",
            note=f"{topic_mb_s / PARTITION_MB_S:.1f} partitions of {PARTITION_MB_S:g} MB/s"),
        row(f"{label}: share of the interval to receive it", 100 * topic_mb_s / LINK_MB_S, "%", 100.0,
            f"at {LINK_MB_S:g} MB/s", most=True),
        row(f"{label}: time available for a step", rank_ms, "ms",
            note=f"{to.users_a_step:,} users, {to.users_a_step / to.num_gpus:,.0f} on each of {to.num_gpus} GPUs; "
            f"{to.actions_s / to.partitions:,.0f} actions/s per partition"),
    ]  # fmt: skip


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    torch.set_num_threads(1)
    num_items, num_steps = (50_000, 10) if quick else (NUM_ITEMS, NUM_STEPS)
    num_rows, row_bytes = measured(num_items, num_steps)
    targets = num_steps * USERS_A_STEP
    choices = targets + min(NUM_USERS, targets) * CONFIG.max_train_context
    predicted = distinct_rows(num_items, choices, num_steps * CONFIG.num_negatives)
    note = f"{num_rows:,} rows after {num_steps} steps, {predicted:,.0f} predicted"
    rows = [
        row("changed rows, measured over predicted", num_rows / predicted, "x", note=note),
        row("bytes on the broker for each changed row", row_bytes, "B", note="its memory, names and weights included"),
    ]
    for each in DEPLOYMENTS:
        rows += extrapolated(each, row_bytes)
    return rows
