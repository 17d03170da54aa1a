"""What has not been met for long loses its rows: items, and the values of domains and features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model.embedding import EmbeddingTable
from model.rates import Rates
from model.tokens import DOMAINS, FEATURES, ITEMS
from trainer.config import TrainerConfig
from wire.moment import MS_PER_DAY

KEPT_SHARE = 0.9
"""How much of ``trainer.max_items`` is left of a catalogue that has grown beyond it: evicting reads the whole memory,
so it should be seldom."""
COUNTS = {DOMAINS: "domain", FEATURES: "feature"}
"""The tables of values, and where `Rates` counts them."""


def evict(config: TrainerConfig, tables: Mapping[str, EmbeddingTable], rates: Rates, now_ms: int) -> NDArray[np.int64]:
    """Drop what is too old, and if there are too many items those that were met the longest time ago. Returns the rows
    that items have lost, for the caller to clear; those of values are."""
    items, before_ms = tables[ITEMS], None
    if config.evict_after_days > 0:
        before_ms = now_ms - int(config.evict_after_days * MS_PER_DAY)
        for name, counts in COUNTS.items():
            rates.forget_values(counts, tables[name].evict(before_ms))
    if 0 < config.max_items < items.num_live:
        oldest_ms = items.newest_seen_ms(max(1, int(config.max_items * KEPT_SHARE)))
        before_ms = oldest_ms if before_ms is None else max(before_ms, oldest_ms)
    if 0 < config.max_items < items.map.num_pending:
        _forget_pending(items, int(config.max_items * KEPT_SHARE))
    return np.zeros(0, np.int64) if before_ms is None else items.evict(before_ms)


def _forget_pending(items: EmbeddingTable, num: int) -> None:
    """Of the items that were met too seldom for a row, keep those that were met last."""
    ids, _, seen_ms = items.map.pending()
    items.map.remove(ids[np.lexsort((ids, -seen_ms))[num:]])
