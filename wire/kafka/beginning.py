"""Where the partitions of the sequences topic begin: compaction does not change that, retention and deletions do."""

from __future__ import annotations

from collections.abc import Mapping


def removed(topic: str, begins: Mapping[int, int], expected: Mapping[int, int] | None = None) -> str:
    """What was removed from the start of partitions, in words; empty if none begins after ``expected`` (0)."""
    first = expected or {}
    late = [number for number, begin in sorted(begins.items()) if begin > first.get(number, 0)]
    if not late:
        return ""
    places = ", ".join(f"partition {number} begins at {begins[number]}, not {first.get(number, 0)}" for number in late)
    return (
        f"topic {topic}: expected what compaction leaves, but {places}: a cleanup.policy with delete, or "
        "kafka-delete-records, has removed what users' sequences consist of. See docs/operations.md, Back up and "
        "restore, for a lost sequences topic"
    )
