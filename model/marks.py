"""Which rows have changed: a byte a row, and in it a bit for each of those who copy what has changed.

What changes a row sets all bits; whoever copies it clears a bit of his own. So a row that changes again behind the
copying is copied again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.memory import CHANGED

__all__ = ["CHANGED", "UNPUBLISHED", "UNSAVED", "Marks", "clear", "is_marked"]

UNPUBLISHED = 1
"""No version has the row as it is now."""
UNSAVED = 2
"""No checkpoint has it."""
Marks = NDArray[np.uint8]


def is_marked(marks: Marks, bit: int) -> NDArray[np.bool_]:
    """Where the bit is set."""
    return np.asarray((marks & np.uint8(bit)) != 0)


def clear(marks: Marks, bit: int) -> None:
    """The rows of this view have been copied."""
    marks &= np.uint8(0xFF ^ bit)
