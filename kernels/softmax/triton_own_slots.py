# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Cross entropy against each query's own negatives: a program per query forward, a program per table row backward."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.softmax.triton_rows import inverse_norm, load_vectors, through_norm
from kernels.triton_shared import count_at_most


@triton.jit
def own_scores(
    table_ptr, slots_ptr, log_q_ptr, query, scale, target, row, slot, num_slots, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, NORMALIZE: tl.constexpr, HAS_LOG_Q: tl.constexpr, MASK_HITS: tl.constexpr,
):  # fmt: skip
    """(rows, 1/norms, scores) of some of a query's slots; -inf for slots that do not compete."""
    place = row.to(tl.int64) * num_slots + slot
    item = tl.load(slots_ptr + place, mask=slot < num_slots, other=-1)
    counts = item >= 0
    rows = load_vectors(table_ptr, item, counts, D, WIDTH).to(tl.float32)
    inverse = inverse_norm(rows, eps, NORMALIZE)
    score = tl.sum(rows * query, 1) * scale * inverse
    if HAS_LOG_Q:
        score -= tl.load(log_q_ptr + place, mask=slot < num_slots, other=0.0)
    if MASK_HITS:
        counts = counts & (item != target)
    return rows, inverse, tl.where(counts, score, -float("inf"))


@triton.jit(do_not_specialize=["num_slots"])
def own_forward_kernel(
    query_ptr, table_ptr, target_ptr, slots_ptr, log_q_slots_ptr, parts_ptr, num_slots, inverse_temperature, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, NORMALIZE: tl.constexpr, HAS_LOG_Q: tl.constexpr,
    MASK_HITS: tl.constexpr,
):  # fmt: skip
    """parts[row] = log-sum-exp over the row's slots."""
    row = tl.program_id(0)
    one = row + tl.arange(0, 1)
    query = load_vectors(query_ptr, one, one >= 0, D, WIDTH).to(tl.float32)
    scale = inverse_norm(query, eps, NORMALIZE) * inverse_temperature
    target = tl.load(target_ptr + row)
    most = tl.zeros([1], tl.float32) - float("inf")
    total = tl.zeros([1], tl.float32)
    for first in range(0, num_slots, SLOTS):
        _, _, score = own_scores(
            table_ptr, slots_ptr, log_q_slots_ptr, query, scale, target, row, first + tl.arange(0, SLOTS), num_slots,
            eps, D, WIDTH, NORMALIZE, HAS_LOG_Q, MASK_HITS,
        )  # fmt: skip
        higher = tl.maximum(most, tl.max(score, 0))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(most - base) + tl.sum(tl.exp(score - base), 0)
        most = higher
    part = tl.where(total > 0.0, most + tl.log(tl.where(total > 0.0, total, 1.0)), -float("inf"))
    tl.store(parts_ptr + one, part)


@triton.jit(do_not_specialize=["num_slots"])
def own_query_gradient_kernel(
    query_ptr, table_ptr, target_ptr, slots_ptr, log_q_slots_ptr, log_sum_ptr, grad_ptr, parts_ptr, num_slots,
    inverse_temperature, eps, D: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, NORMALIZE: tl.constexpr,
    HAS_LOG_Q: tl.constexpr, MASK_HITS: tl.constexpr,
):  # fmt: skip
    """parts[row] (D,): the gradient of the unit query from its slots."""
    row = tl.program_id(0)
    one = row + tl.arange(0, 1)
    query = load_vectors(query_ptr, one, one >= 0, D, WIDTH).to(tl.float32)
    scale = inverse_norm(query, eps, NORMALIZE) * inverse_temperature
    target = tl.load(target_ptr + row)
    log_sum = tl.load(log_sum_ptr + row)
    outer = tl.load(grad_ptr + row).to(tl.float32) * inverse_temperature
    acc = tl.zeros([WIDTH], tl.float32)
    for first in range(0, num_slots, SLOTS):
        rows, inverse, score = own_scores(
            table_ptr, slots_ptr, log_q_slots_ptr, query, scale, target, row, first + tl.arange(0, SLOTS), num_slots,
            eps, D, WIDTH, NORMALIZE, HAS_LOG_Q, MASK_HITS,
        )  # fmt: skip
        acc += tl.sum(rows * (tl.exp(score - log_sum) * inverse * outer)[:, None], 0)
    column = tl.arange(0, WIDTH)
    tl.store(parts_ptr + row.to(tl.int64) * D + column, acc, mask=column < D)


@triton.jit(do_not_specialize=["num_slots", "num_pairs", "num_steps"])
def own_table_gradient_kernel(
    query_ptr, table_ptr, target_ptr, sorted_ptr, order_ptr, log_q_slots_ptr, log_sum_ptr, grad_ptr, out_ptr,
    num_slots, num_pairs, num_steps, inverse_temperature, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, PAIRS: tl.constexpr, NORMALIZE: tl.constexpr, HAS_LOG_Q: tl.constexpr,
    MASK_HITS: tl.constexpr,
):  # fmt: skip
    """out[table row] = its gradient from all slots with it; ``sorted``: rows, ``order``: their (query, slot)."""
    item = tl.program_id(0)
    one = item + tl.arange(0, 1)
    rows = load_vectors(table_ptr, one, one >= 0, D, WIDTH).to(tl.float32)
    inverse = inverse_norm(rows, eps, NORMALIZE)
    ends = count_at_most(sorted_ptr, num_pairs, (item - 1 + tl.arange(0, 2)).to(tl.int64), num_steps)
    first, last = tl.min(ends, 0), tl.max(ends, 0)
    acc = tl.zeros([WIDTH], tl.float32)
    for start in range(first, last, PAIRS):
        place = start + tl.arange(0, PAIRS)
        there = place < last
        pair = tl.load(order_ptr + place, mask=there, other=0)
        row = pair // num_slots
        query = load_vectors(query_ptr, row, there, D, WIDTH).to(tl.float32)
        query_inverse = inverse_norm(query, eps, NORMALIZE)
        score = tl.sum(query * rows, 1) * query_inverse * inverse * inverse_temperature
        if HAS_LOG_Q:
            score -= tl.load(log_q_slots_ptr + pair, mask=there, other=0.0)
        if MASK_HITS:
            there = there & (tl.load(target_ptr + row) != item)
        log_sum = tl.load(log_sum_ptr + row)
        outer = tl.load(grad_ptr + row).to(tl.float32) * inverse_temperature * query_inverse
        share = tl.where(there, tl.exp(score - log_sum), 0.0) * outer
        acc += tl.sum(query * share[:, None], 0)
    column = tl.arange(0, WIDTH)
    grad = through_norm(acc[None, :], rows, inverse, eps, NORMALIZE)
    place = out_ptr + one.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(place, grad.to(out_ptr.dtype.element_ty), mask=(column < D)[None, :])
