"""A ring buffer of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Ring:
    """The last ``size`` of the rows appended."""

    def __init__(self, size: int, width: int) -> None:
        self.rows, self.next, self.filled = np.zeros((size, width), np.float32), 0, 0

    def extend(self, rows: NDArray[Any]) -> None:
        """Append rows, overwriting the oldest."""
        rows = rows[-len(self.rows) :]
        where = (self.next + np.arange(len(rows))) % len(self.rows)
        self.rows[where] = rows
        self.next = int((self.next + len(rows)) % len(self.rows))
        self.filled = min(len(self.rows), self.filled + len(rows))

    def view(self) -> NDArray[np.float32]:
        """The rows kept, in no particular order."""
        return self.rows[: self.filled]
