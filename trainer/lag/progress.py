"""A trainer's progress, as other threads see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.sources.source import Position
from wire.weights import Manifest


@dataclass(frozen=True, slots=True)
class Progress:
    """A trainer's progress, for other threads: replaced as a whole, never changed. Times in ms, wall clock."""

    time_ms: int = 0
    """The time of this state; 0 before the trainer has begun."""
    num_steps: int = 0
    num_interactions: int = 0
    num_set_aside: int = 0
    """Interactions in steps that were set aside because what they left was not finite."""
    num_lost: int = 0
    """Examples that compaction or retention removed before this process read them."""
    is_recovering: bool = False
    is_standby: bool = False
    """Another trainer leads; this one waits."""
    claimant: str = ""
    """This trainer's name in its claims."""
    positions: dict[int, Position] = field(default_factory=dict)
    oldest_waiting_ms: dict[int, int] = field(default_factory=dict)
    newest_record_ms: int = 0
    newest_event_ms: int = 0
    unpublished_since_ms: int = 0
    published: Manifest | None = None
    published_ms: int = 0
    epoch: int = -1
    retrieval_loss: float | None = None
    ranking_loss: float | None = None
    num_items: int = 0
    num_evicted: int = 0
    """Items that lost their rows since this process began."""
    checkpointed_ms: int = 0
    """When this process last wrote a checkpoint, or began to write them; 0 if it writes none."""
    metrics: dict[str, Any] = field(default_factory=dict)
