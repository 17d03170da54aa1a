"""What a table's rows may be stored as: float32, bfloat16 or float16. In NumPy, bfloat16 is its bits as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROW_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The codes of csrc/half.h."""
ARRAY_TYPES = {np.dtype(np.float32): 0, np.dtype(np.uint16): 1, np.dtype(np.float16): 2}
"""The same for arrays."""

Rows = NDArray[Any]
"""(V, D) of one of `ARRAY_TYPES`."""


def type_of(table_VD: Tensor) -> int:
    """The code of a table's type. Raises ValueError."""
    if table_VD.dtype not in ROW_TYPES:
        raise ValueError(f"table_VD: expected {', '.join(map(str, ROW_TYPES))}, got {table_VD.dtype}; convert it")
    return ROW_TYPES[table_VD.dtype]


def as_float32(rows_VD: Rows) -> NDArray[np.float32]:
    """The rows' numbers; a copy unless they are float32."""
    if rows_VD.dtype == np.uint16:
        return (rows_VD.astype(np.uint32) << 16).view(np.float32)
    return rows_VD.astype(np.float32, copy=False)
