"""The random bits of stochastic rounding, a function of a key, the row and the column; and the rounding itself.

A number between two that 16 bits can represent becomes the upper one with the probability that is right on average, so
that updates smaller than half a step are not lost. Bits are those of MurmurHash3's finaliser (Appleby, 2011) on row and
column; the key is splitmix64's (Steele, Lea & Flood, OOPSLA 2014) of whatever decides it. Who computes a row, and
beside which others, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

COLUMN_STEP = 0x9E3779B9
MOST_ROWS = 1 << 31
"""Rows beyond would repeat the bits of others."""
_UINT32, _UINT64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class Dither:
    """How rows are rounded: with the bits of ``key``, 64 of them as a signed number. The row at place p is row
    ``p * stride + first`` of the whole table."""

    key: int
    stride: int = 1
    first: int = 0

    @staticmethod
    def of(numbers: Iterable[int], stride: int = 1, first: int = 0) -> Dither:
        """With the key that these numbers decide."""
        key = 0
        for number in numbers:
            key = _splitmix64(key ^ number & _UINT64)
        return Dither(key - (1 << 64) if key >> 63 else key, stride, first)


def _splitmix64(x: int) -> int:
    x = x + 0x9E3779B97F4A7C15 & _UINT64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _UINT64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _UINT64
    return x ^ x >> 31


def random_bits(dither: Dither, place_U: Tensor, width: int) -> Tensor:
    """(U, D) int64 of 32 bits each."""
    row_U = place_U.to(torch.int64) * dither.stride + dither.first
    key = dither.key & _UINT64
    key_U = _mixed(_mixed(row_U + (key & _UINT32)) + (key >> 32))
    column_D = torch.arange(width, device=place_U.device)
    return _mixed(column_D * COLUMN_STEP + key_U[:, None])


def _mixed(x: Tensor) -> Tensor:
    x = x & _UINT32
    x = (x ^ x >> 16) * 0x85EBCA6B & _UINT32
    x = (x ^ x >> 13) * 0xC2B2AE35 & _UINT32
    return x ^ x >> 16


def dithered(x_UD: Tensor, random_UD: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 numbers, rounded stochastically to bfloat16 or float16. Beyond float16's range they become infinite;
    below 2^-32, where they are less than a 256th of its smallest number, zero."""
    bits_UD = x_UD.contiguous().view(torch.int32).to(torch.int64) & _UINT32
    if dtype == torch.bfloat16:
        found_UD = bits_UD + (random_UD >> 16) >> 16
        return _as_type(torch.where(x_UD.isnan(), bits_UD >> 16 | 0x40, found_UD), dtype)
    magnitude_UD = bits_UD & 0x7FFF_FFFF
    exponent_UD = magnitude_UD >> 23
    is_subnormal_UD = exponent_UD < 113
    drop_UD = torch.where(is_subnormal_UD, (126 - exponent_UD).clamp(max=31), 13)
    kept_UD = torch.where(is_subnormal_UD, magnitude_UD & 0x7F_FFFF | 0x80_0000, magnitude_UD - (112 << 23))
    found_UD = kept_UD + (random_UD >> 32 - drop_UD) >> drop_UD
    found_UD = torch.where(exponent_UD < 95, 0, found_UD)
    found_UD = torch.where((found_UD > 0x7C00) | (magnitude_UD >= 0x7F80_0000), 0x7C00, found_UD)
    found_UD = torch.where(x_UD.isnan(), 0x7E00, found_UD)
    return _as_type(found_UD | bits_UD >> 16 & 0x8000, dtype)


def _as_type(bits_UD: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(bits_UD >= 0x8000, bits_UD - 0x10000, bits_UD).to(torch.int16).view(dtype)
