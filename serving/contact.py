"""Whether the broker answers, and if not, since when."""

from __future__ import annotations

import time


class Contact:
    """When the broker last answered; shared by everything that talks to it."""

    def __init__(self) -> None:
        self._heard = time.monotonic()
        self._up = True

    def heard(self) -> None:
        """Note that the broker has just answered."""
        self._heard, self._up = time.monotonic(), True

    def missed(self) -> None:
        """Note that the broker did not answer."""
        self._up = False

    @property
    def is_up(self) -> bool:
        """Whether the last attempt was answered."""
        return self._up

    @property
    def away_s(self) -> float:
        """How long the broker has not answered; 0 while it does."""
        return 0.0 if self._up else time.monotonic() - self._heard
