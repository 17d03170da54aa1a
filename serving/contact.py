"""Whether the broker answers, and since when it does not."""

from __future__ import annotations

import time


class Contact:
    """When a broker was last heard of: one object, shared by everything that talks to it."""

    def __init__(self) -> None:
        self._heard = time.monotonic()
        self._up = True

    def heard(self) -> None:
        """The broker answered just now."""
        self._heard, self._up = time.monotonic(), True

    def missed(self) -> None:
        """The broker did not answer."""
        self._up = False

    @property
    def is_up(self) -> bool:
        """Whether the last attempt was answered."""
        return self._up

    @property
    def away_s(self) -> float:
        """How long it has not answered; 0 while it does."""
        return 0.0 if self._up else time.monotonic() - self._heard
