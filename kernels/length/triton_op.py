# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Stochastic length on CUDA tensors: keys in one kernel, two sorts, a running count; the same integers as reference."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_shared import INTERPRETED, count_at_most, empty_rows


@triton.jit
def shift_right(x, num_bits: tl.constexpr):
    """Logical shift of int64 read as unsigned."""
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)


@triton.jit
def mix(x):
    """The finaliser of splitmix64."""
    x = (x ^ shift_right(x, 30)) * -4658895280553007687
    x = (x ^ shift_right(x, 27)) * -7723592293110705685
    return x ^ shift_right(x, 31)


@triton.jit
def random_bits(seed, index):
    """64 random bits."""
    return mix(mix(seed) + (index + 1) * -7046029254386353131)


@triton.jit
def exponential(bits):
    """-log2 of a 33-bit uniform with 16 fractional bits; see `kernels.length.reference.exponential`."""
    wide = (shift_right(bits, 32) << 1) | 1
    mantissa = wide
    log2 = tl.zeros_like(bits)
    for i in tl.static_range(6):
        large = mantissa >= (1 << (32 >> i))
        log2 += tl.where(large, 32 >> i, 0)
        mantissa = tl.where(large, mantissa >> (32 >> i), mantissa)
    down = tl.maximum(log2 - 30, 0)
    up = tl.maximum(30 - log2, 0)
    mantissa = tl.where(log2 > 30, wide >> down, wide << up)
    for _ in tl.static_range(16):
        mantissa = (mantissa * mantissa) >> 30
        bit = mantissa >> 31
        log2 = (log2 << 1) | bit
        mantissa = mantissa >> bit
    return 2162688 - log2


@triton.jit(do_not_specialize=["num_tokens", "num_users", "num_steps", "max_units"])
def key_kernel(
    offsets_ptr, seeds_ptr, must_ptr, key_ptr, user_ptr, kept_ptr, num_tokens, num_users, num_steps, max_units,
    UNIT: tl.constexpr, RECENCY: tl.constexpr, SOMETIMES_WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Per token: its user; whether it is always kept; the key of the unit whose first token it is, else the largest."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    user = count_at_most(offsets_ptr, num_users + 1, token.to(tl.int64), num_steps) - 1
    user = tl.minimum(user, num_users - 1)
    start = tl.load(offsets_ptr + user, mask=inside, other=0)
    stop = tl.load(offsets_ptr + user + 1, mask=inside, other=0)
    seed = tl.load(seeds_ptr + user, mask=inside, other=0)
    num_context = stop - start - tl.load(must_ptr + user, mask=inside, other=0)
    num_units = num_context // UNIT
    whole = num_units <= max_units
    if SOMETIMES_WHOLE:
        draw = shift_right(random_bits(seed, tl.zeros_like(seed) - 1), 42)
        square = tl.zeros_like(seed) + max_units
        whole = whole | (draw * num_units * num_units < ((square * square) << 22))
    place = token - start
    thinned = (place < num_context) & (whole == 0)
    index = place // UNIT
    age = num_units - 1 - index
    bits = random_bits(seed, index)
    key = exponential(bits) * (age + 1) if RECENCY else shift_right(bits, 22)
    key = (key << 20) | age
    leads = thinned & (place % UNIT == 0)
    tl.store(key_ptr + token, tl.where(leads, key, 9223372036854775807), mask=inside)
    tl.store(user_ptr + token, user, mask=inside)
    tl.store(kept_ptr + token, (thinned == 0).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "max_units"])
def choose_kernel(
    offsets_ptr, order_ptr, user_ptr, key_ptr, kept_ptr, num_tokens, max_units, UNIT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Mark the tokens of the ``max_units`` smallest keys of each user; ``order``: tokens by user, then key."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_tokens
    token = tl.load(order_ptr + place, mask=inside, other=0)
    user = tl.load(user_ptr + token, mask=inside, other=0)
    rank = place - tl.load(offsets_ptr + user, mask=inside, other=0)
    leads = tl.load(key_ptr + token, mask=inside, other=9223372036854775807) != 9223372036854775807
    chosen = inside & leads & (rank < max_units)
    for i in tl.static_range(UNIT):
        tl.store(kept_ptr + token + i, tl.zeros_like(token).to(tl.int32) + 1, mask=chosen)


@triton.jit(do_not_specialize=["num_tokens", "num_offsets"])
def compact_kernel(
    kept_ptr, count_ptr, offsets_ptr, tokens_ptr, new_offsets_ptr, num_tokens, num_offsets, BLOCK: tl.constexpr
):  # fmt: skip
    """Kept tokens in order, and the users' new offsets; ``count``: number of kept tokens up to each one."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = tl.load(kept_ptr + token, mask=token < num_tokens, other=0) != 0
    target = tl.load(count_ptr + token, mask=kept, other=1) - 1
    tl.store(tokens_ptr + target, token.to(tl.int64), mask=kept)
    offset = tl.load(offsets_ptr + token, mask=token < num_offsets, other=0)
    before = tl.load(count_ptr + offset - 1, mask=(token < num_offsets) & (offset > 0), other=0)
    tl.store(new_offsets_ptr + token, before, mask=token < num_offsets)


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
    """`kernels.stochastic_length` on a GPU; waits for the device twice, for sizes computed there."""
    device, num_users = offsets_B1.device, len(seeds_B)
    num_tokens = int(offsets_B1[-1])
    if num_tokens == 0:
        return offsets_B1.new_empty(0), torch.zeros_like(offsets_B1)
    offsets_B1, seeds_B, must_keep_last_B = (x.contiguous() for x in (offsets_B1, seeds_B, must_keep_last_B))
    key = torch.empty(num_tokens, dtype=torch.int64, device=device)
    user, kept = empty_rows(2, num_tokens, torch.int32, device)
    block = 64 if INTERPRETED else 256
    grid = (triton.cdiv(num_tokens, block),)
    key_kernel[grid](
        offsets_B1, seeds_B, must_keep_last_B, key, user, kept, num_tokens, num_users, (num_users + 1).bit_length(),
        max_kept // unit, UNIT=unit, RECENCY=recency, SOMETIMES_WHOLE=sometimes_whole, BLOCK=block,
    )  # fmt: skip
    by_key = torch.sort(key).indices
    order = by_key[torch.sort(user[by_key], stable=True).indices]
    choose_kernel[grid](offsets_B1, order, user, key, kept, num_tokens, max_kept // unit, UNIT=unit, BLOCK=block)
    count = kept.cumsum(0)
    tokens = torch.empty(int(count[-1]), dtype=torch.int64, device=device)
    new_offsets_B1 = torch.empty_like(offsets_B1)
    compact_kernel[(triton.cdiv(max(num_tokens, num_users + 1), block),)](
        kept, count, offsets_B1, tokens, new_offsets_B1, num_tokens, num_users + 1, BLOCK=block
    )
    return tokens, new_offsets_B1
