"""What stands for a batch of records that was not read: it would take too much memory, or nobody can read it."""

from __future__ import annotations

from wire.action_json import Reason


class Unread(bytes):
    """The value of the one record that readers get instead of those in the batch: no bytes, and the reason."""

    why: str
    reason: Reason

    def __new__(cls, why: str, reason: Reason = "oversized") -> Unread:
        """``why``: for whoever finds it. ``reason``: of the dead letter."""
        made = super().__new__(cls)
        made.why, made.reason = why, reason
        return made
