"""Which items a trainer evicts: those that are too old, and if there are too many those met the longest time ago."""

from __future__ import annotations

from model.embedding import EmbeddingTable
from trainer.config import TrainerConfig

MS_PER_DAY = 86_400_000.0
KEPT_SHARE = 0.9
"""How much of ``trainer.max_items`` is left of a catalogue that has grown beyond it: evicting reads the whole memory,
so it should be seldom."""


def evicted_before_ms(items: EmbeddingTable, config: TrainerConfig, now_ms: int) -> int | None:
    """Items last seen before this time are to be evicted; None if all may stay."""
    before_ms = now_ms - int(config.evict_after_days * MS_PER_DAY) if config.evict_after_days > 0 else None
    if 0 < config.max_items < items.num_live:
        oldest_ms = items.newest_seen_ms(max(1, int(config.max_items * KEPT_SHARE)))
        before_ms = oldest_ms if before_ms is None else max(before_ms, oldest_ms)
    return before_ms
