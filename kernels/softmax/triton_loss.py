"""Sampled and full cross entropy on CUDA tensors: kernel launches, and one autograd node for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.softmax.triton_own_slots import own_forward_kernel, own_query_gradient_kernel, own_table_gradient_kernel
from kernels.softmax.triton_rows import add_slots_kernel, order_kernel
from kernels.softmax.triton_shared_slots import (
    loss_kernel,
    query_finish_kernel,
    shared_forward_kernel,
    shared_query_gradient_kernel,
    shared_slot_gradient_kernel,
    slot_finish_kernel,
)
from kernels.triton_shared import INTERPRETED, dot_precision, empty_rows, next_power, num_processors, require_device


@dataclass(frozen=True, eq=False)
class Slots:
    """What competes: ``rows`` (S,) shared or (R, S) per query, None for the whole table; their mask and log q."""

    rows: Tensor | None
    valid: Tensor | None
    log_q_target: Tensor | None
    log_q: Tensor | None
    mask_hits: bool
    num_slots: int

    @property
    def own(self) -> bool:
        """Whether each query has its own list."""
        return self.rows is not None and self.rows.dim() == 2


@dataclass(frozen=True)
class Scale:
    """How inner products become scores."""

    inverse_temperature: float
    eps: float
    normalize: bool

    @property
    def arguments(self) -> tuple[float, float]:
        """The values in the form that kernels take."""
        return self.inverse_temperature, self.eps


def shape_options(query: Tensor) -> dict[str, Any]:
    """The width of a row, and how many rows a tile has."""
    width = next_power(query.shape[1])
    rows = 16 if INTERPRETED else max(16, min(64, 16384 // width))
    if query.dtype == torch.float32:
        rows = min(rows, 32)
    return {"D": query.shape[1], "WIDTH": width, "ROWS": rows}


def _tile_options(query: Tensor, slots: Slots, scale: Scale) -> dict[str, Any]:
    options = shape_options(query)
    return options | {
        "SLOTS": options["ROWS"], "NORMALIZE": scale.normalize, "GATHER": slots.rows is not None,
        "HAS_VALID": slots.valid is not None, "HAS_LOG_Q": slots.log_q is not None, "MASK_HITS": slots.mask_hits,
        "PRECISION": dot_precision(query.dtype), "num_warps": 8 if options["WIDTH"] >= 256 else 4, "num_stages": 2,
    }  # fmt: skip


def _row_options(query: Tensor, slots: Slots, scale: Scale) -> dict[str, Any]:
    width = next_power(query.shape[1])
    return {
        "D": query.shape[1], "WIDTH": width, "ROWS": max(1, 4096 // width), "NORMALIZE": scale.normalize,
        "HAS_LOG_Q": slots.log_q is not None,
    }  # fmt: skip


def _splits(query: Tensor, tiles: int, work: int) -> int:
    """How many programs share one tile's loop, to fill the GPU."""
    return max(1, min(work, 2 * num_processors(query) // tiles, 64))


def _own_options(query: Tensor, slots: Slots, scale: Scale) -> dict[str, Any]:
    width = next_power(query.shape[1])
    return {
        "D": query.shape[1], "WIDTH": width, "NORMALIZE": scale.normalize, "HAS_LOG_Q": slots.log_q is not None,
        "MASK_HITS": slots.mask_hits,
    }  # fmt: skip


def _parts(query: Tensor, table: Tensor, target: Tensor, slots: Slots, scale: Scale) -> Tensor:
    """(splits, R) log-sum-exps of the slots."""
    num_rows = query.shape[0]
    if slots.own:
        parts = torch.empty(1, num_rows, dtype=torch.float32, device=query.device)
        own_forward_kernel[(num_rows,)](
            query, table, target, slots.rows, slots.log_q, parts, slots.num_slots, *scale.arguments, SLOTS=32,
            **_own_options(query, slots, scale),
        )  # fmt: skip
        return parts
    options = _tile_options(query, slots, scale)
    tiles = triton.cdiv(num_rows, options["ROWS"])
    splits = _splits(query, tiles, triton.cdiv(slots.num_slots, options["SLOTS"]))
    parts = torch.empty(splits, num_rows, dtype=torch.float32, device=query.device)
    shared_forward_kernel[(tiles, splits)](
        query, table, target, slots.rows, slots.valid, slots.log_q, parts, num_rows, slots.num_slots,
        *scale.arguments, **options,
    )  # fmt: skip
    return parts


def _query_parts(
    query: Tensor, table: Tensor, target: Tensor, log_sum: Tensor, grad: Tensor, slots: Slots, scale: Scale
) -> Tensor:
    """(splits, R, D) gradients of the unit queries from the slots."""
    num_rows, width = query.shape
    if slots.own:
        parts = torch.empty(1, num_rows, width, dtype=torch.float32, device=query.device)
        own_query_gradient_kernel[(num_rows,)](
            query, table, target, slots.rows, slots.log_q, log_sum, grad, parts, slots.num_slots, *scale.arguments,
            SLOTS=32, **_own_options(query, slots, scale),
        )  # fmt: skip
        return parts
    options = _tile_options(query, slots, scale)
    tiles = triton.cdiv(num_rows, options["ROWS"])
    if options["WIDTH"] >= 256:  # the accumulator needs the registers that a wider tile of scores would take
        options["SLOTS"] //= 2
    splits = min(8, _splits(query, tiles, triton.cdiv(slots.num_slots, options["SLOTS"])))
    parts = torch.empty(splits, num_rows, width, dtype=torch.float32, device=query.device)
    shared_query_gradient_kernel[(tiles, splits)](
        query, table, target, slots.rows, slots.valid, slots.log_q, log_sum, grad, parts, num_rows, slots.num_slots,
        *scale.arguments, **options,
    )  # fmt: skip
    return parts


def _slot_gradients(
    query: Tensor, table: Tensor, target: Tensor, log_sum: Tensor, grad: Tensor, slots: Slots, scale: Scale
) -> Tensor:
    """(S, D): gradients of the shared slots' rows; without a list, of the whole table, in its dtype."""
    if slots.num_slots == 0:
        return query.new_empty(0, query.shape[1], dtype=torch.float32)
    options = _tile_options(query, slots, scale)
    tiles = triton.cdiv(slots.num_slots, options["SLOTS"])
    if options["WIDTH"] >= 256:
        options["ROWS"] //= 2
    splits = _splits(query, tiles, triton.cdiv(query.shape[0], options["ROWS"]))
    parts = torch.empty(splits, slots.num_slots, query.shape[1], dtype=torch.float32, device=query.device)
    shared_slot_gradient_kernel[(tiles, splits)](
        query, table, target, slots.rows, slots.valid, slots.log_q, log_sum, grad, parts, query.shape[0],
        slots.num_slots, *scale.arguments, **options,
    )  # fmt: skip
    dtype = torch.float32 if slots.rows is not None else table.dtype
    out = torch.empty(slots.num_slots, query.shape[1], dtype=dtype, device=query.device)
    rows = _row_options(query, slots, scale)
    slot_finish_kernel[(triton.cdiv(slots.num_slots, rows["ROWS"]),)](
        table, slots.rows if slots.rows is not None else target, parts, out, slots.num_slots, splits, scale.eps,
        D=rows["D"], WIDTH=rows["WIDTH"], SLOTS=rows["ROWS"], NORMALIZE=scale.normalize, GATHER=slots.rows is not None,
    )  # fmt: skip
    return out


MOST_COUNTED = 16_384
"""At most this many slots are ordered by counting, whose work grows with their square; more are sorted."""


def _in_order(slots: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, their places) of slots and targets, in stable order of rows."""
    num_names = len(slots) + len(target)
    if num_names > MOST_COUNTED:
        ordered = torch.sort(torch.cat([slots, target]), stable=True)
        return ordered.values, ordered.indices
    rows, order = empty_rows(2, num_names, torch.int32, target.device).unbind()
    order_kernel[(triton.cdiv(num_names, 32),)](
        slots, target, rows, order, len(slots), num_names, BLOCK=32, CHUNK=32 if INTERPRETED else 256
    )
    return rows, order


def _add_slots(slots: Tensor, slot_grad: Tensor, target: Tensor, target_grad: Tensor, out: Tensor, add: bool) -> None:
    """out[row] (+)= the sum of the gradients of the slots and targets with that row, in order."""
    rows, order = _in_order(slots, target)
    width = next_power(out.shape[1])
    add_slots_kernel[(out.shape[0],)](
        rows, order, slot_grad, target_grad, out, len(slots), len(rows), len(rows).bit_length(),
        D=out.shape[1], WIDTH=width, SLOTS=max(1, min(32, 8192 // width)), ADD=add,
    )  # fmt: skip


def _table_gradient(
    query: Tensor, table: Tensor, target: Tensor, log_sum: Tensor, grad: Tensor, target_grad: Tensor, slots: Slots,
    scale: Scale,
) -> Tensor:  # fmt: skip
    if slots.rows is None:
        out = _slot_gradients(query, table, target, log_sum, grad, slots, scale)
        _add_slots(target[:0], target_grad[:0], target, target_grad, out, add=True)
        return out
    out = torch.empty_like(table)
    if slots.own:
        flat = torch.sort(slots.rows.flatten(), stable=True)
        own_table_gradient_kernel[(table.shape[0],)](
            query, table, target, flat.values, flat.indices, slots.log_q, log_sum, grad, out,
            slots.num_slots, flat.values.numel(), flat.values.numel().bit_length(), *scale.arguments, PAIRS=16,
            **_own_options(query, slots, scale),
        )  # fmt: skip
        _add_slots(target[:0], target_grad[:0], target, target_grad, out, add=True)
        return out
    negative_grad = _slot_gradients(query, table, target, log_sum, grad, slots, scale)
    _add_slots(slots.rows, negative_grad, target, target_grad, out, add=False)
    return out


class CrossEntropy(torch.autograd.Function):
    """Saves its inputs and one number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, table: Tensor, target: Tensor, slots: Slots, scale: Scale) -> Tensor:
        """The output; saves what the gradients need."""
        query, table, target = query.contiguous(), table.contiguous(), target.contiguous()
        num_rows = query.shape[0]
        both: tuple[Tensor, ...] = empty_rows(2, num_rows, torch.float32, query.device).unbind()
        loss, log_sum = both
        if num_rows:
            options = _row_options(query, slots, scale)
            parts = _parts(query, table, target, slots, scale)
            loss_kernel[(triton.cdiv(num_rows, options["ROWS"]),)](
                query, table, target, slots.log_q_target, parts, log_sum, loss, num_rows, parts.shape[0],
                *scale.arguments, **options,
            )  # fmt: skip
        ctx.save_for_backward(query, table, target, log_sum)
        ctx.slots, ctx.scale = slots, scale
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the inputs."""
        query, table, target, log_sum = ctx.saved_tensors
        slots, scale = ctx.slots, ctx.scale
        if query.shape[0] == 0:
            return torch.zeros_like(query), torch.zeros_like(table), None, None, None
        grad = grad.contiguous()
        query_grad = torch.empty_like(query)
        target_grad = torch.empty(query.shape, dtype=torch.float32, device=query.device)
        parts = _query_parts(query, table, target, log_sum, grad, slots, scale)
        options = _row_options(query, slots, scale)
        query_finish_kernel[(triton.cdiv(query.shape[0], options["ROWS"]),)](
            query, table, target, slots.log_q_target, log_sum, grad, parts, query_grad, target_grad, query.shape[0],
            parts.shape[0], *scale.arguments, **options,
        )  # fmt: skip
        table_grad = None
        if ctx.needs_input_grad[1]:
            table_grad = _table_gradient(query, table, target, log_sum, grad, target_grad, slots, scale)
        return query_grad, table_grad, None, None, None


def sampled_softmax(
    query_RD: Tensor,
    table_UD: Tensor,
    target_R: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    normalize: bool,
    eps: float,
    log_q_target_R: Tensor | None,
    log_q_negatives: Tensor | None,
    mask_hits: bool,
) -> Tensor:
    """`kernels.sampled_softmax` on a GPU (or any tensors in Triton's interpreter)."""
    require_device(query_RD, "sampled_softmax")
    log_q = [x.to(torch.float32).contiguous() if x is not None else None for x in (log_q_target_R, log_q_negatives)]
    slots = Slots(negatives.contiguous(), None, log_q[0], log_q[1], mask_hits, negatives.shape[-1])
    result: Tensor = CrossEntropy.apply(query_RD, table_UD, target_R, slots, Scale(1.0 / temperature, eps, normalize))
    return result


def full_softmax(
    query_RD: Tensor,
    table_VD: Tensor,
    target_R: Tensor,
    *,
    temperature: float,
    normalize: bool,
    eps: float,
    valid_V: Tensor | None,
) -> Tensor:
    """`kernels.full_softmax` on a GPU (or any tensors in Triton's interpreter)."""
    require_device(query_RD, "full_softmax")
    valid_V = valid_V.contiguous() if valid_V is not None else None
    slots = Slots(None, valid_V, None, None, mask_hits=True, num_slots=table_VD.shape[0])
    result: Tensor = CrossEntropy.apply(query_RD, table_VD, target_R, slots, Scale(1.0 / temperature, eps, normalize))
    return result
