"""The definition of stochastic length, in integers only, so that every backend keeps the same tokens.

A unit (the tokens of one interaction) gets a key from its user's seed, its index and its age; the units with the
smallest keys are kept. Uniform: the key is random. Recency: the key is an exponential variate times ``age + 1``, which
samples without replacement with weights ``1 / (age + 1)`` (Efraimidis & Spirakis, 2006). The exponential variate is
``-log2`` of a 33-bit uniform in 16-bit fixed point, computed by repeated squaring: without floats, so no rounding
depends on the machine. Age 0 is the youngest unit of the context.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_UNITS = 1 << 20
"""Longest context in units: keys pack 42 random bits over 20 bits of age."""
_AGE_BITS = 20
_WEYL = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, num_bits: int) -> Tensor:
    """Logical shift of int64 read as unsigned."""
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea & Flood, 2014)."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def random_bits(seed: Tensor, index: Tensor) -> Tensor:
    """64 random bits for each (seed, index), as int64."""
    return _mix(_mix(seed) + (index + 1) * _WEYL)


def exponential(bits: Tensor) -> Tensor:
    """-log2(u), u = (2 · high 32 bits + 1) / 2^33, with 16 fractional bits; 1 to 33 · 2^16."""
    mantissa = (_shift_right(bits, 32) << 1) | 1
    log2 = torch.zeros_like(mantissa)
    for step in (32, 16, 8, 4, 2, 1):
        large = mantissa >= (1 << step)
        log2 += torch.where(large, step, 0)
        mantissa = torch.where(large, mantissa >> step, mantissa)
    mantissa = (_shift_right(bits, 32) << 1) | 1
    # Normalised to 31 bits, [2^30, 2^31), so that its square fits.
    mantissa = torch.where(log2 > 30, mantissa >> (log2 - 30).clamp(min=0), mantissa << (30 - log2).clamp(min=0))
    for _ in range(16):
        mantissa = (mantissa * mantissa) >> 30
        bit = mantissa >> 31
        log2 = (log2 << 1) | bit
        mantissa >>= bit
    return (33 << 16) - log2


def sampling_key(seed: Tensor, index: Tensor, age: Tensor, recency: bool) -> Tensor:
    """Non-negative int64, different for every unit of a user; the smallest are kept."""
    bits = random_bits(seed, index)
    key = exponential(bits) * (age + 1) if recency else _shift_right(bits, 22)
    return (key << _AGE_BITS) | age


def keeps_all(seed: Tensor, num_units: Tensor, max_units: int) -> Tensor:
    """True with probability (max_units / num_units)², decided by 22 random bits of index -1."""
    draw = _shift_right(random_bits(seed, torch.full_like(seed, -1)), 42)
    return draw * num_units * num_units < (max_units * max_units) << 22


def stochastic_length(
    offsets_B1: Tensor,
    seeds_B: Tensor,
    *,
    max_kept: int,
    recency: bool,
    unit: int,
    must_keep_last_B: Tensor,
    sometimes_whole: bool,
) -> tuple[Tensor, Tensor]:
    """See `kernels.stochastic_length`."""
    kept, counts = [], []
    for b in range(len(seeds_B)):
        start, stop = int(offsets_B1[b]), int(offsets_B1[b + 1])
        num_context = stop - start - int(must_keep_last_B[b])
        num_units, max_units = num_context // unit, max_kept // unit
        whole = num_units <= max_units
        if not whole and sometimes_whole:
            whole = bool(keeps_all(seeds_B[b], torch.tensor(num_units, device=seeds_B.device), max_units))
        tokens = torch.arange(start, stop, device=offsets_B1.device)
        if not whole:
            index = torch.arange(num_units, device=offsets_B1.device)
            key = sampling_key(seeds_B[b], index, num_units - 1 - index, recency)
            chosen = torch.sort(torch.argsort(key)[:max_units]).values
            context = (chosen[:, None] * unit + torch.arange(unit, device=chosen.device)).flatten()
            tokens = torch.cat([start + context, tokens[num_context:]])
        kept.append(tokens)
        counts.append(len(tokens))
    new_offsets_B1 = torch.zeros_like(offsets_B1)
    new_offsets_B1[1:] = torch.tensor(counts, dtype=torch.int64).cumsum(0)
    return torch.cat(kept) if kept else offsets_B1.new_empty(0), new_offsets_B1
