"""What stands for a compressed batch of records that was not read, since it would take too much memory."""

from __future__ import annotations


class Exploded(bytes):
    """The value of the one record that readers get instead of those in the batch: no bytes, and the reason."""

    why: str

    def __new__(cls, why: str) -> Exploded:
        """``why``: for whoever finds it."""
        made = super().__new__(cls)
        made.why = why
        return made
