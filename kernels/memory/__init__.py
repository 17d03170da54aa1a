"""The memory: which items follow which, counted event by event, and mixed with the network's logits into one score.

Counting learns from one sighting what gradients learn from hundreds; gradients generalise where counts are empty. A
score is a weighted sum of features: decayed counts of the items that the user chose before (several windows and ways to
normalise them, and learned weights of the same neighbours, after Ning & Karypis, "SLIM", ICDM 2011), how popular an
item has been lately, the user's own repeats, and the network's logit. The weights ("gains") are learned online on the
softmax over all items, event by event (Adagrad; Duchi et al., JMLR 2011), shared and by the length of the user's
history: with a gain at zero a feature does no harm. The best rows of that sum are looked at again by a small network
that sees the same features together.

Arrays are NumPy's: the memory lives on the host, whatever the network runs on.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from kernels.dispatch import load
from kernels.memory import reference
from kernels.memory.arrays import (
    EVIDENCE,
    FEATURES,
    STANDING,
    Float32,
    MemoryArrays,
    MemoryEvents,
    MemoryOutcome,
    MemoryRules,
)

__all__ = [
    "EVIDENCE",
    "FEATURES",
    "STANDING",
    "MemoryArrays",
    "MemoryEvents",
    "MemoryOutcome",
    "MemoryRules",
    "memory_learn",
    "memory_scores",
]
EXCLUDE = ("never", "always", "auto")


def memory_learn(
    memory: MemoryArrays,
    num_rows: int,
    events: MemoryEvents,
    logit_AV: Float32,
    rules: MemoryRules,
    *,
    backend: str = "auto",
) -> MemoryOutcome:
    """Predict, learn and count each event, in order; changes ``memory``.

    ``num_rows``: rows in use, of which the first is no item's. ``logit_AV`` (A, at least ``num_rows``) float32: the
    network's logits, a row for each event that is asked (1 in ``events.chosen_R``). Raises ValueError (shapes, dtypes),
    IndexError (a row outside), `KernelUnavailable`."""
    _check(memory, num_rows, events, logit_AV, int((events.chosen_R == 1).sum()))
    if rules.exclude not in EXCLUDE:
        raise ValueError(f"exclude: expected one of {EXCLUDE}, got {rules.exclude!r}")
    outcome: MemoryOutcome = _version(backend).memory_learn(memory, num_rows, events, logit_AV, rules)
    return outcome


def memory_scores(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, *, backend: str = "auto"
) -> None:
    """Turn the network's logits into scores, a row for each event, in place; rows that were never met score below
    -1e29. Changes nothing else.

    Of ``events`` only the past counts, and what was met, which scores as low. Errors as `memory_learn`.
    """
    _check(memory, num_rows, events, logit_AV, len(events))
    _version(backend).memory_scores(memory, num_rows, events, logit_AV)


def _version(backend: str) -> ModuleType:
    if backend == "reference":
        return reference
    if backend not in ("auto", "cpp"):
        raise ValueError(f"backend: expected auto, cpp or reference, got {backend!r}; the memory lives on the host")
    return load("memory", "cpp")


def _check(memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, num_asked: int) -> None:
    if not 1 <= num_rows <= memory.capacity:
        raise ValueError(f"num_rows: expected 1 to the memory's {memory.capacity}, got {num_rows}; grow it first")
    num = len(events)
    if events.chosen_R.shape != (num,) or events.chosen_R.dtype != np.uint8:
        raise ValueError(
            f"chosen_R: expected uint8 of shape ({num},), got {events.chosen_R.dtype} {events.chosen_R.shape}"
        )
    if logit_AV.dtype != np.float32 or logit_AV.ndim != 2 or (logit_AV.size and logit_AV.strides[1] != 4):
        raise ValueError(
            f"logit_AV: expected float32 rows, got {logit_AV.dtype} {logit_AV.shape} with strides {logit_AV.strides}"
        )
    if logit_AV.shape[0] != num_asked or logit_AV.shape[1] < num_rows:
        raise ValueError(f"logit_AV: expected ({num_asked}, {num_rows} or more), got {logit_AV.shape}")
    for name in ("target_R", "past_rows", "met_rows"):
        rows, least = getattr(events, name), 0 if name == "target_R" else 1
        if rows.dtype != np.int32:
            raise ValueError(f"{name}: expected int32, got {rows.dtype}")
        if len(rows) and not (least <= rows.min() and rows.max() < num_rows):
            raise IndexError(f"{name}: expected rows {least} to {num_rows - 1}, got {rows.min()} to {rows.max()}")
    for kind, rows in (("past", events.past_rows), ("met", events.met_rows)):
        begin, end = getattr(events, f"{kind}_begin_R"), getattr(events, f"{kind}_end_R")
        if begin.shape != (num,) or end.shape != (num,) or begin.dtype != np.int64 or end.dtype != np.int64:
            raise ValueError(f"{kind}_begin_R, {kind}_end_R: expected int64 of shape ({num},)")
        if num and not (begin.min() >= 0 and (begin <= end).all() and end.max() <= len(rows)):
            raise ValueError(f"{kind}_begin_R, {kind}_end_R: expected ranges within {len(rows)} {kind}_rows")
