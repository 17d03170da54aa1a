"""Checks that rows are within a table."""

from __future__ import annotations

import torch
from torch import Tensor


def check_range(rows: Tensor, num_rows: int, name: str, *, lowest: int) -> None:
    """Raise IndexError unless all ``rows`` are in [lowest, num_rows). Rows on a GPU are not read: that would stall."""
    if rows.numel() == 0 or rows.is_cuda:
        return
    least, most = (int(x) for x in torch.aminmax(rows))
    if least < lowest or most >= num_rows:
        raise IndexError(f"{name}: expected rows {lowest} to {num_rows - 1}, got {least} to {most}")
