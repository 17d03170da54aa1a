"""Stochastic length: thin long contexts by a seeded random choice that is the same on every machine.

Source: "Actions Speak Louder than Words" (Zhai et al., ICML 2024), section 3.3: of N tokens, keep N^(α/2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import choose
from kernels.dispatch import load
from kernels.length import reference
from kernels.length.reference import MAX_UNITS

MODES = ("recency", "uniform")


def kept_length(num_tokens: int, alpha: float, unit: int = 2) -> int:
    """N^(α/2) rounded down to whole units, at least one unit: ``max_kept`` for the paper's α (1 < α ≤ 2)."""
    if not 1 < alpha <= 2:
        raise ValueError(f"alpha: expected above 1 and at most 2, got {alpha}")
    return max(unit, int(num_tokens ** (alpha / 2)) // unit * unit)


def stochastic_length(
    offsets_B1: Tensor,
    seeds_B: Tensor,
    *,
    max_kept: int,
    mode: str = "recency",
    unit: int = 2,
    must_keep_last_B: Tensor | None = None,
    sometimes_whole: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Which tokens of a jagged batch to keep: (T',) int64 token indices, ascending, and their (B + 1,) offsets.

    ``offsets_B1`` (B + 1,) int64 token offsets; ``seeds_B`` (B,) int64, one per user. The last ``must_keep_last_B``
    (B,) int64 tokens of a user (None: none) are always kept; those before them are its context. A context of more than
    ``max_kept`` tokens is thinned to ``max_kept``, in whole groups of ``unit`` tokens (2: an item and its action).
    Counts of tokens must be multiples of ``unit``. ``mode``: "uniform", or "recency", which draws
    without replacement with weight 1 / (age + 1), age in units from the context's end.
    ``sometimes_whole``: as in the paper, a long context of n units stays whole with probability (kept / n)².

    The choice depends only on the seed, the context's length and the arguments; it is the same on every backend.
    Raises ValueError for shapes, dtypes, and contexts of more than 2^20 units.
    """
    must_keep_last_B = torch.zeros_like(seeds_B) if must_keep_last_B is None else must_keep_last_B
    _check_tensors(offsets_B1, seeds_B, must_keep_last_B)
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if unit < 1 or max_kept < unit or max_kept % unit:
        raise ValueError(f"max_kept: expected a multiple of unit ({unit}) and at least one unit, got {max_kept}")
    chosen = choose(backend, offsets_B1.device)
    if not offsets_B1.is_cuda:
        _check_lengths(offsets_B1, must_keep_last_B, unit)
    ops = reference if chosen == "reference" else load("length", chosen)
    kept_T, new_offsets_B1 = ops.stochastic_length(
        offsets_B1,
        seeds_B,
        max_kept=max_kept,
        recency=mode == "recency",
        unit=unit,
        must_keep_last_B=must_keep_last_B,
        sometimes_whole=sometimes_whole,
    )
    return kept_T, new_offsets_B1


def _check_tensors(offsets_B1: Tensor, seeds_B: Tensor, must_keep_last_B: Tensor) -> None:
    if offsets_B1.dim() != 1 or offsets_B1.numel() < 1 or offsets_B1.dtype != torch.int64:
        raise ValueError(f"offsets_B1: expected (B + 1,) int64, got {offsets_B1.dtype} {tuple(offsets_B1.shape)}")
    for name, x in (("seeds_B", seeds_B), ("must_keep_last_B", must_keep_last_B)):
        if tuple(x.shape) != (offsets_B1.numel() - 1,) or x.dtype != torch.int64 or x.device != offsets_B1.device:
            raise ValueError(
                f"{name}: expected ({offsets_B1.numel() - 1},) int64 on {offsets_B1.device}, "
                f"got {x.dtype} {tuple(x.shape)} on {x.device}"
            )


def _check_lengths(offsets_B1: Tensor, must_keep_last_B: Tensor, unit: int) -> None:
    length_B = offsets_B1.diff()
    context_B = length_B - must_keep_last_B
    if int(offsets_B1[0]) != 0 or bool((length_B < 0).any()):
        raise ValueError(f"offsets_B1: expected offsets rising from 0, got {offsets_B1.tolist()[:8]}…")
    if bool(((must_keep_last_B < 0) | (context_B < 0)).any()):
        raise ValueError("must_keep_last_B: expected 0 to the user's number of tokens, got one outside")
    if bool((context_B % unit != 0).any()):
        raise ValueError(f"offsets_B1: expected contexts of whole units of {unit} tokens, got one that is not")
    if bool((context_B // unit > MAX_UNITS).any()):
        raise ValueError(
            f"offsets_B1: expected contexts of at most {MAX_UNITS} units, got {int(context_B.max())} tokens"
        )
