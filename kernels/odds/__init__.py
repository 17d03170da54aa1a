"""The odds: how likely each kind of action is, from counts and the network's logit, learned event by event.

Counting finds a rate after a few sightings, gradients need hundreds. So the counts of the item (all, and recent ones),
of its domain and features and of each two of these, of the pause before the interaction, of the user (all, and the
last few interactions), and of the user with this item and with items that share its domain or a feature become
log-odds, each relative to its prior; the network's logit is one more. A kind's logit is their weighted sum plus the
output of one hidden layer that sees all of them. The weights are learned
online on the log loss, event by event (Adagrad; Duchi et al., JMLR 2011), as in the mixing of Mahoney ("Adaptive
weighing of context models", 2005): what predicts badly loses its weight.

Counts change with each event. The weights learn an interaction `OddsRules.horizon` interactions later, when its kinds
have arrived, from the inputs that it was predicted from (`OddsKept`). A kind that arrives even later reverses, with the
same inputs, what the weights learned from its absence. Learning at once and correcting with the inputs of the later
moment diverged: by then the user's last interactions had their kinds, so 0s and 1s were learned from different inputs,
and nothing kept the odds of the former from falling and those of the latter from rising without bound.

The arrays are NumPy arrays: the odds stay on the host, wherever the network runs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np

from kernels.beside import Beside
from kernels.dispatch import load
from kernels.odds import reference
from kernels.odds.arrays import (
    COUNTED,
    HIDDEN,
    NUM_BLOCKS,
    Float32,
    OddsArrays,
    OddsEvents,
    OddsKept,
    OddsRules,
)

__all__ = [
    "COUNTED",
    "HIDDEN",
    "NUM_BLOCKS",
    "OddsArrays",
    "OddsEvents",
    "OddsKept",
    "OddsRules",
    "odds_begin",
    "odds_learn",
    "odds_predict",
]


def odds_learn(
    odds: OddsArrays, kept: OddsKept, events: OddsEvents, rules: OddsRules, *, backend: str = "auto"
) -> Float32:
    """(R, K) logits. Predicts and counts each event, in the events' order, and lets the weights learn the interactions
    that are old enough; changes ``odds`` and ``kept``. For feedback, the logits are what is predicted for the earlier
    interaction now.

    Raises ValueError (shapes, dtypes), IndexError (a row outside), `KernelUnavailable`."""
    return odds_begin(odds, kept, events, rules, backend=backend)()


def odds_begin(
    odds: OddsArrays, kept: OddsKept, events: OddsEvents, rules: OddsRules, *, beside: Beside | None = None,
    backend: str = "auto",
) -> Callable[[], Float32]:  # fmt: skip
    """`odds_learn` on the thread ``beside``; returns what waits for its logits. Until then nobody else may read or
    change ``odds``, ``kept`` and ``events``. Without a thread, or by the reference, all is done before it returns."""
    _check(odds, events)
    if kept.log_PI.shape != (len(kept.bits_P), odds.num_kept):
        raise ValueError(f"log_PI: expected {odds.num_kept} numbers a row, got {kept.log_PI.shape}")
    if not 0 <= rules.horizon < len(kept.bits_P):
        raise ValueError(f"horizon: expected 0 to {len(kept.bits_P) - 1} (what is kept), got {rules.horizon}")
    version = _version(backend)
    if beside is not None and version is not reference:
        begun: Callable[[], Float32] = version.odds_begin(odds, kept, events, rules, beside)
        return begun
    logit_RK: Float32 = version.odds_learn(odds, kept, events, rules)
    return lambda: logit_RK


def odds_predict(odds: OddsArrays, events: OddsEvents, *, backend: str = "auto") -> Float32:
    """(R, K) logits of events that have not happened: changes nothing, and ignores the kinds that they bring. Errors as
    in `odds_learn`."""
    _check(odds, events)
    logit_RK: Float32 = _version(backend).odds_predict(odds, events)
    return logit_RK


def _version(backend: str) -> ModuleType:
    if backend == "reference":
        return reference
    if backend not in ("auto", "cpp"):
        raise ValueError(f"backend: expected auto, cpp or reference, got {backend!r}; the odds live on the host")
    return load("odds", "cpp")


def _check(odds: OddsArrays, events: OddsEvents) -> None:
    num, num_kinds, past = len(events), odds.num_kinds, len(events.past_item_n)
    expected = {
        "row_R": ((num,), np.int32),
        "attribute_RA": ((num, odds.num_attributes), np.int32),
        "item_R": ((num,), np.int64),
        "network_RK": ((num, num_kinds), np.float32),
        "bits_R": ((num,), np.uint32),
        "is_new_R": ((num,), np.uint8),
        "order_R": ((num,), np.int64),
        "past_item_n": ((past,), np.int64),
        "past_bits_n": ((past,), np.uint32),
        "past_begin_R": ((num,), np.int64),
        "past_end_R": ((num,), np.int64),
        "alike_RL": ((num, odds.num_alike), np.int64),
        "past_alike_nL": ((past, odds.num_alike), np.int64),
        "kept_R": ((num,), np.int32),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(events, name)
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {array.dtype} {array.shape}")
