# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""What the kernels need to know about a batch's users, computed once per batch on the device, without waiting for it.

Tiles are cut from the batch's token axis, not from each user: a tile may hold the end of one user and several short
users, so short users are packed for free, and the grid is known without reading lengths back. Tokens beyond the last
offset belong to no user and see only themselves: a batch may be padded at its end (for CUDA graphs).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_shared import count_at_most, empty_rows

BLOCK = 128
"""Tokens of a row block; the kernels' tiles divide it."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Per token, int32: its user's first token, end, end of context, first target; and the order of blocks.

    The longest users first, and each user's blocks together, those with the most work first: programs that run at the
    same time then read the same keys and values, from the L2 cache. (With all users' longest blocks first, they would
    be read from memory again and again.)
    """

    start_T: Tensor
    stop_T: Tensor
    context_T: Tensor
    history_T: Tensor
    query_order: Tensor
    key_order: Tensor


@triton.jit
def rank(start, stop, work):
    """A block's rank, by its user's length, the user's place, and the block's work: 21 bits each."""
    length = tl.minimum(stop - start, 2097151).to(tl.int64)
    return (length * 2097152 + start // 128) * 2097152 + tl.minimum(work, 2097151)


@triton.jit(do_not_specialize=["num_users", "num_tokens", "num_steps"])
def plan_kernel(
    offsets_ptr,
    num_context_ptr,
    num_targets_ptr,
    start_ptr,
    stop_ptr,
    context_ptr,
    history_ptr,
    query_rank_ptr,
    key_rank_ptr,
    num_users,
    num_tokens,
    num_steps,
    HAS_CONTEXT: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The columns of `Plan`, and the block's ranks: for queries by its first token's user, for keys by its last's."""
    block = tl.program_id(0)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    user = count_at_most(offsets_ptr, num_users + 1, token.to(tl.int64), num_steps) - 1
    user = tl.minimum(user, num_users - 1)
    outside = token >= tl.load(offsets_ptr + num_users)
    start = tl.load(offsets_ptr + user, mask=inside, other=0).to(tl.int32)
    stop = tl.load(offsets_ptr + user + 1, mask=inside, other=0).to(tl.int32)
    start = tl.where(outside, token, start)
    stop = tl.where(outside, token + 1, stop)
    context = start
    history = stop
    if HAS_CONTEXT:
        context = start + tl.where(outside, 0, tl.load(num_context_ptr + user, mask=inside, other=0).to(tl.int32))
    if HAS_TARGETS:
        history = stop - tl.where(outside, 0, tl.load(num_targets_ptr + user, mask=inside, other=0).to(tl.int32))
    tl.store(start_ptr + token, start, mask=inside)
    tl.store(stop_ptr + token, stop, mask=inside)
    tl.store(context_ptr + token, context, mask=inside)
    tl.store(history_ptr + token, history, mask=inside)
    first = block * BLOCK
    end = first + BLOCK
    low = tl.min(tl.where(inside, start, 2147483647), 0)
    tl.store(query_rank_ptr + block, rank(low, tl.min(tl.where(inside, stop, 2147483647), 0), end - low))
    high = tl.max(tl.where(inside, stop, 0), 0)
    tl.store(key_rank_ptr + block, rank(tl.max(tl.where(inside, start, 0), 0), high, high - first))


@triton.jit(do_not_specialize=["num_blocks", "stride", "order_stride"])
def order_blocks_kernel(rank_ptr, order_ptr, num_blocks, stride, order_stride, BLOCK: tl.constexpr):
    """Blocks by descending rank, equal ones in order: each block counts those that come before it."""
    ranks = rank_ptr + tl.program_id(1) * stride
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(ranks + block, mask=block < num_blocks, other=0)[:, None]
    place = tl.zeros([BLOCK], tl.int32)
    for first in range(0, num_blocks, BLOCK):
        other_block = first + tl.arange(0, BLOCK)
        other = tl.load(ranks + other_block, mask=other_block < num_blocks, other=-1)[None, :]
        goes_before = (other > own) | ((other == own) & (other_block[None, :] < block[:, None]))
        place += tl.sum(goes_before.to(tl.int32), 1)
    tl.store(order_ptr + tl.program_id(1) * order_stride + place, block, mask=block < num_blocks)


def make_plan(offsets_B1: Tensor, num_tokens: int, num_context_B: Tensor | None, num_targets_B: Tensor | None) -> Plan:
    """A batch's plan, by two small kernels."""
    num_blocks = triton.cdiv(num_tokens, BLOCK)
    per_token = empty_rows(4, num_tokens, torch.int32, offsets_B1.device)
    ranks = empty_rows(2, num_blocks, torch.int64, offsets_B1.device)
    plan_kernel[(num_blocks,)](
        offsets_B1, num_context_B, num_targets_B, *per_token, *ranks, len(offsets_B1) - 1, num_tokens,
        len(offsets_B1).bit_length(),
        HAS_CONTEXT=num_context_B is not None, HAS_TARGETS=num_targets_B is not None, BLOCK=BLOCK,
    )  # fmt: skip
    order = empty_rows(2, num_blocks, torch.int32, offsets_B1.device)
    order_blocks_kernel[(triton.cdiv(num_blocks, 32), 2)](
        ranks, order, num_blocks, ranks.stride(0), order.stride(0), BLOCK=32
    )
    return Plan(*per_token, *order)
