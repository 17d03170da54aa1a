"""Dirty bits: a byte for each row, with one bit for each reader that copies what has changed.

Changing a row sets all bits; a reader clears its own bit when it copies the row. So a row that changes after it was
copied is copied again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.memory import CHANGED

__all__ = ["CHANGED", "UNPUBLISHED", "UNSAVED", "DirtyBits", "clear", "is_dirty"]

UNPUBLISHED = 1
"""The row has changed since it was last published in a version."""
UNSAVED = 2
"""The row has changed since it was last saved in a checkpoint."""
DirtyBits = NDArray[np.uint8]


def is_dirty(dirty: DirtyBits, bit: int) -> NDArray[np.bool_]:
    """Which rows are dirty for this reader."""
    return np.asarray((dirty & np.uint8(bit)) != 0)


def clear(dirty: DirtyBits, bit: int) -> None:
    """Clear the bit of all rows of this view, which have been copied."""
    dirty &= np.uint8(0xFF ^ bit)
