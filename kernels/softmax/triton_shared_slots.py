# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Cross entropy against negatives that all queries share (or the whole table): tiles of scores on the matrix units.

The passes keep a running maximum and sum, or recompute the scores; no score leaves its tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.softmax.triton_rows import inverse_norm, load_vectors, through_norm


@triton.jit
def slot_items(
    slots_ptr, valid_ptr, log_q_ptr, slot, num_slots,
    GATHER: tl.constexpr, HAS_VALID: tl.constexpr, HAS_LOG_Q: tl.constexpr,
):  # fmt: skip
    """(row of the table, whether the slot holds a competitor, its log q)."""
    there = slot < num_slots
    item = slot.to(tl.int64)
    if GATHER:
        item = tl.load(slots_ptr + slot, mask=there, other=-1)
        there = there & (item >= 0)
    if HAS_VALID:
        there = there & (tl.load(valid_ptr + item, mask=there, other=0) != 0)
    log_q = tl.zeros_like(slot).to(tl.float32)
    if HAS_LOG_Q:
        log_q = tl.load(log_q_ptr + slot, mask=there, other=0.0)
    return item, there, log_q


@triton.jit
def target_scores(
    query_ptr, table_ptr, target_ptr, log_q_ptr, row, num_rows, inverse_temperature, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, NORMALIZE: tl.constexpr, HAS_LOG_Q: tl.constexpr,
):  # fmt: skip
    """(query tile, 1/norms, target tile, 1/norms, target rows, scores)."""
    inside = row < num_rows
    query = load_vectors(query_ptr, row, inside, D, WIDTH)
    target = tl.load(target_ptr + row, mask=inside, other=0)
    item = load_vectors(table_ptr, target, inside, D, WIDTH)
    query_inverse = inverse_norm(query, eps, NORMALIZE)
    item_inverse = inverse_norm(item, eps, NORMALIZE)
    score = tl.sum(query.to(tl.float32) * item.to(tl.float32), 1) * query_inverse * item_inverse * inverse_temperature
    if HAS_LOG_Q:
        score -= tl.load(log_q_ptr + row, mask=inside, other=0.0)
    return query, query_inverse, item, item_inverse, target, score


@triton.jit(do_not_specialize=["num_rows", "num_slots"])
def shared_forward_kernel(
    query_ptr, table_ptr, target_ptr, slots_ptr, valid_ptr, log_q_slots_ptr, parts_ptr,
    num_rows, num_slots, inverse_temperature, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, NORMALIZE: tl.constexpr,
    GATHER: tl.constexpr, HAS_VALID: tl.constexpr, HAS_LOG_Q: tl.constexpr, MASK_HITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """parts[split, row] = log-sum-exp over this split's slots; -inf if there are none."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    query = load_vectors(query_ptr, row, row < num_rows, D, WIDTH)
    scale = inverse_norm(query, eps, NORMALIZE) * inverse_temperature
    target = tl.load(target_ptr + row, mask=row < num_rows, other=-1)
    most = tl.zeros([ROWS], tl.float32) - float("inf")
    total = tl.zeros([ROWS], tl.float32)
    for first in range(tl.program_id(1) * SLOTS, num_slots, tl.num_programs(1) * SLOTS):
        slot = first + tl.arange(0, SLOTS)
        item, there, log_q = slot_items(
            slots_ptr, valid_ptr, log_q_slots_ptr, slot, num_slots, GATHER, HAS_VALID, HAS_LOG_Q
        )  # fmt: skip
        rows = load_vectors(table_ptr, item, there, D, WIDTH)
        score = tl.dot(query, tl.trans(rows), input_precision=PRECISION)
        score = score * scale[:, None] * inverse_norm(rows, eps, NORMALIZE)[None, :] - log_q[None, :]
        counts = there[None, :]
        if MASK_HITS:
            counts = counts & (item[None, :] != target[:, None])
        score = tl.where(counts, score, -float("inf"))
        higher = tl.maximum(most, tl.max(score, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(most - base) + tl.sum(tl.exp(score - base[:, None]), 1)
        most = higher
    part = tl.where(total > 0.0, most + tl.log(tl.where(total > 0.0, total, 1.0)), -float("inf"))
    tl.store(parts_ptr + tl.program_id(1).to(tl.int64) * num_rows + row, part, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_parts"])
def loss_kernel(
    query_ptr, table_ptr, target_ptr, log_q_target_ptr, parts_ptr, log_sum_ptr, loss_ptr, num_rows, num_parts,
    inverse_temperature, eps, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, NORMALIZE: tl.constexpr,
    HAS_LOG_Q: tl.constexpr,
):  # fmt: skip
    """Add the target to the splits' sums: log_sum (R,) over everything that competes, loss = log_sum - score."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    _, _, _, _, _, score = target_scores(
        query_ptr, table_ptr, target_ptr, log_q_target_ptr, row, num_rows, inverse_temperature, eps,
        D, WIDTH, NORMALIZE, HAS_LOG_Q,
    )  # fmt: skip
    most = score
    total = tl.zeros_like(score) + 1.0
    for part in range(num_parts):
        other = tl.load(
            parts_ptr + part * tl.full((), num_rows, tl.int64) + row, mask=row < num_rows, other=-float("inf")
        )
        higher = tl.maximum(most, other)
        total = total * tl.exp(most - higher) + tl.exp(other - higher)
        most = higher
    log_sum = most + tl.log(total)
    tl.store(log_sum_ptr + row, log_sum, mask=row < num_rows)
    tl.store(loss_ptr + row, log_sum - score, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_slots"])
def shared_query_gradient_kernel(
    query_ptr, table_ptr, target_ptr, slots_ptr, valid_ptr, log_q_slots_ptr, log_sum_ptr, grad_ptr, parts_ptr,
    num_rows, num_slots, inverse_temperature, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, NORMALIZE: tl.constexpr,
    GATHER: tl.constexpr, HAS_VALID: tl.constexpr, HAS_LOG_Q: tl.constexpr, MASK_HITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """parts[split, row] (D,): gradient of the unit query from this split's slots."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    query = load_vectors(query_ptr, row, inside, D, WIDTH)
    scale = inverse_norm(query, eps, NORMALIZE) * inverse_temperature
    target = tl.load(target_ptr + row, mask=inside, other=-1)
    log_sum = tl.load(log_sum_ptr + row, mask=inside, other=0.0)
    outer = tl.load(grad_ptr + row, mask=inside, other=0.0).to(tl.float32) * inverse_temperature
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(tl.program_id(1) * SLOTS, num_slots, tl.num_programs(1) * SLOTS):
        slot = first + tl.arange(0, SLOTS)
        item, there, log_q = slot_items(
            slots_ptr, valid_ptr, log_q_slots_ptr, slot, num_slots, GATHER, HAS_VALID, HAS_LOG_Q
        )  # fmt: skip
        rows = load_vectors(table_ptr, item, there, D, WIDTH)
        inverse = inverse_norm(rows, eps, NORMALIZE)
        score = tl.dot(query, tl.trans(rows), input_precision=PRECISION)
        score = score * scale[:, None] * inverse[None, :] - log_q[None, :]
        counts = there[None, :] & inside[:, None]
        if MASK_HITS:
            counts = counts & (item[None, :] != target[:, None])
        share = tl.where(counts, tl.exp(score - log_sum[:, None]), 0.0) * outer[:, None] * inverse[None, :]
        acc = tl.dot(share.to(rows.dtype), rows, acc=acc, input_precision=PRECISION)
    column = tl.arange(0, WIDTH)
    place = parts_ptr + (tl.program_id(1).to(tl.int64) * num_rows + row)[:, None] * D + column[None, :]
    tl.store(place, acc, mask=inside[:, None] & (column < D)[None, :])


@triton.jit(do_not_specialize=["num_rows", "num_parts"])
def query_finish_kernel(
    query_ptr, table_ptr, target_ptr, log_q_target_ptr, log_sum_ptr, grad_ptr, parts_ptr, query_grad_ptr,
    target_grad_ptr, num_rows, num_parts, inverse_temperature, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, NORMALIZE: tl.constexpr, HAS_LOG_Q: tl.constexpr,
):  # fmt: skip
    """The queries' gradients from the parts and the target; and the gradient of each query's target row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    query, query_inverse, item, item_inverse, _, score = target_scores(
        query_ptr, table_ptr, target_ptr, log_q_target_ptr, row, num_rows, inverse_temperature, eps,
        D, WIDTH, NORMALIZE, HAS_LOG_Q,
    )  # fmt: skip
    log_sum = tl.load(log_sum_ptr + row, mask=inside, other=0.0)
    outer = tl.load(grad_ptr + row, mask=inside, other=0.0).to(tl.float32) * inverse_temperature
    share = (tl.exp(score - log_sum) - 1.0) * outer
    grad = (share * item_inverse)[:, None] * item.to(tl.float32)
    column = tl.arange(0, WIDTH)
    keep = inside[:, None] & (column < D)[None, :]
    for part in range(num_parts):
        place = parts_ptr + (part * tl.full((), num_rows, tl.int64) + row)[:, None] * D + column[None, :]
        grad += tl.load(place, mask=keep, other=0.0)
    place = row.to(tl.int64)[:, None] * D + column[None, :]
    query_grad = through_norm(grad, query, query_inverse, eps, NORMALIZE)
    tl.store(query_grad_ptr + place, query_grad.to(query_grad_ptr.dtype.element_ty), mask=keep)
    target_grad = (share * query_inverse)[:, None] * query.to(tl.float32)
    tl.store(target_grad_ptr + place, through_norm(target_grad, item, item_inverse, eps, NORMALIZE), mask=keep)


@triton.jit(do_not_specialize=["num_rows", "num_slots"])
def shared_slot_gradient_kernel(
    query_ptr, table_ptr, target_ptr, slots_ptr, valid_ptr, log_q_slots_ptr, log_sum_ptr, grad_ptr, parts_ptr,
    num_rows, num_slots, inverse_temperature, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, NORMALIZE: tl.constexpr,
    GATHER: tl.constexpr, HAS_VALID: tl.constexpr, HAS_LOG_Q: tl.constexpr, MASK_HITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """parts[split, slot] (D,): gradient of the slots' unit rows from this split's queries."""
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    item, there, log_q = slot_items(
        slots_ptr, valid_ptr, log_q_slots_ptr, slot, num_slots, GATHER, HAS_VALID, HAS_LOG_Q
    )  # fmt: skip
    rows = load_vectors(table_ptr, item, there, D, WIDTH)
    scale = inverse_norm(rows, eps, NORMALIZE) * inverse_temperature
    acc = tl.zeros([SLOTS, WIDTH], tl.float32)
    for first in range(tl.program_id(1) * ROWS, num_rows, tl.num_programs(1) * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = row < num_rows
        query = load_vectors(query_ptr, row, inside, D, WIDTH)
        inverse = inverse_norm(query, eps, NORMALIZE)
        target = tl.load(target_ptr + row, mask=inside, other=-1)
        log_sum = tl.load(log_sum_ptr + row, mask=inside, other=0.0)
        outer = tl.load(grad_ptr + row, mask=inside, other=0.0).to(tl.float32) * inverse_temperature
        score = tl.dot(rows, tl.trans(query), input_precision=PRECISION)
        score = score * scale[:, None] * inverse[None, :] - log_q[:, None]
        counts = there[:, None] & inside[None, :]
        if MASK_HITS:
            counts = counts & (item[:, None] != target[None, :])
        share = tl.where(counts, tl.exp(score - log_sum[None, :]), 0.0) * (outer * inverse)[None, :]
        acc = tl.dot(share.to(query.dtype), query, acc=acc, input_precision=PRECISION)
    column = tl.arange(0, WIDTH)
    place = parts_ptr + (tl.program_id(1).to(tl.int64) * num_slots + slot)[:, None] * D + column[None, :]
    tl.store(place, acc, mask=(slot < num_slots)[:, None] & (column < D)[None, :])


@triton.jit(do_not_specialize=["num_slots", "num_parts"])
def slot_finish_kernel(
    table_ptr, slots_ptr, parts_ptr, out_ptr, num_slots, num_parts, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, NORMALIZE: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """out[slot] = the gradient of the slot's row, from the parts."""
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    item, there, _ = slot_items(slots_ptr, slots_ptr, slots_ptr, slot, num_slots, GATHER, False, False)
    rows = load_vectors(table_ptr, item, there, D, WIDTH)
    column = tl.arange(0, WIDTH)
    keep = (slot < num_slots)[:, None] & (column < D)[None, :]
    grad = tl.zeros([SLOTS, WIDTH], tl.float32)
    for part in range(num_parts):
        place = parts_ptr + (part * tl.full((), num_slots, tl.int64) + slot)[:, None] * D + column[None, :]
        grad += tl.load(place, mask=keep, other=0.0)
    grad = through_norm(grad, rows, inverse_norm(rows, eps, NORMALIZE), eps, NORMALIZE)
    place = out_ptr + slot.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(place, grad.to(out_ptr.dtype.element_ty), mask=keep)
