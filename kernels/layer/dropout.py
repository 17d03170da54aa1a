"""Dropout whose mask is a function of (seed, token, column): the same on every backend, so that a replay is exact.

    h = mix(token * 0x9E3779B1 + column * 0x85EBCA77 + low32(seed))        all in 32 bits, wrapping
    h = mix(h + high32(seed) + 0xC2B2AE3D)
    kept where h >> 8 >= round(dropout * 2**24), and scaled by 1 / (1 - dropout)

with mix(h): h ^= h >> 16; h *= 0x7FEB352D; h ^= h >> 15; h *= 0x846CA68B; h ^= h >> 16 (a 32-bit finaliser with low
bias, from Chris Wellons, "Prospecting for Hash Functions", 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def threshold(dropout: float) -> int:
    """The 24-bit threshold: entries with smaller hashes are dropped."""
    return round(dropout * 2**24)


def _mix(h: Tensor) -> Tensor:
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & _MASK
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & _MASK
    return h ^ (h >> 16)


def keep_mask(seed: int, num_tokens: int, num_columns: int, dropout: float, device: torch.device) -> Tensor:
    """(tokens, columns) bool: True where kept."""
    token = torch.arange(num_tokens, dtype=torch.int64, device=device)[:, None]
    column = torch.arange(num_columns, dtype=torch.int64, device=device)[None, :]
    h = _mix((token * 0x9E3779B1 + column * 0x85EBCA77 + (seed & _MASK)) & _MASK)
    h = _mix((h + ((seed >> 32) & _MASK) + 0xC2B2AE3D) & _MASK)
    return (h >> 8) >= threshold(dropout)
