"""Dirty marks: a byte for each row, with a bit for each reader that copies what has changed.

Changing a row sets all bits; a reader clears its own bit when it copies the row. So a row that changes after it was
copied is copied again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.memory import CHANGED

__all__ = ["CHANGED", "UNPUBLISHED", "UNSAVED", "Marks", "clear", "is_marked"]

UNPUBLISHED = 1
"""The row has changed since it was last published in a version."""
UNSAVED = 2
"""The row has changed since it was last saved in a checkpoint."""
Marks = NDArray[np.uint8]


def is_marked(marks: Marks, bit: int) -> NDArray[np.bool_]:
    """Which rows have the bit."""
    return np.asarray((marks & np.uint8(bit)) != 0)


def clear(marks: Marks, bit: int) -> None:
    """Clear the bit of all rows of this view, which have been copied."""
    marks &= np.uint8(0xFF ^ bit)
