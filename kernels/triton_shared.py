# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Parts shared by several Triton kernels: searching a sorted array, SiLU by the hardware's tanh, and others."""

from __future__ import annotations

import os
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import KernelUnavailable

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Whether kernels run as Python on CPU tensors (Triton's interpreter), where there is no inline assembly."""


def require_device(tensor: Tensor, op: str) -> None:
    """Raise unless the tensor is a CUDA tensor of float32 or bfloat16; in the interpreter any device will do."""
    if not (tensor.is_cuda or INTERPRETED):
        raise KernelUnavailable(
            f"{op}: backend='triton' needs CUDA tensors, got {tensor.device}; move them, or use backend='cpp'"
        )
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        raise KernelUnavailable(
            f"{op}: Triton launches on the current GPU, cuda:{torch.cuda.current_device()}, but got tensors on "
            f"{tensor.device}; call it within `torch.cuda.device({str(tensor.device)!r})`"
        )
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"{op}: expected float32 or bfloat16 for backend='triton', got {tensor.dtype}; use backend='reference'"
        )


def fast_math(dtype: torch.dtype) -> bool:
    """The hardware's approximate tanh (relative error 2^-11) is good enough for bfloat16 inputs, not for float32."""
    return dtype == torch.bfloat16 and not INTERPRETED


def dot_precision(dtype: torch.dtype) -> str:
    """How matrix units multiply float32: exactly, unless `torch.set_float32_matmul_precision` allows TF32."""
    exact = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact else "tf32"


def num_processors(tensor: Tensor) -> int:
    """Streaming multiprocessors of the tensor's GPU; 2 in the interpreter."""
    return _num_processors(tensor.device) if tensor.is_cuda else 2


@cache
def _num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def architecture(tensor: Tensor) -> int:
    """The tensor's GPU architecture: from 80 on Ampere, 90 Hopper, 100 Blackwell; Hopper in the interpreter."""
    return _architecture(tensor.device) if tensor.is_cuda else 90


@cache
def _architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def empty_rows(num_rows: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(rows, length), uninitialised, each row aligned to 16 values.

    Triton compiles a kernel again for pointers with another alignment, which the rows of a plain (rows, length) tensor
    would have with every other batch length.
    """
    return torch.empty(num_rows, (length + 15) // 16 * 16, dtype=dtype, device=device)[:, :length]


def next_power(n: int, least: int = 16) -> int:
    """The smallest power of two that is at least n and ``least`` (the shortest side that matrix units take)."""
    return max(least, 1 << max(0, n - 1).bit_length())


DIRECT = tl.constexpr(not INTERPRETED)


@triton.jit
def look_up(pointer):
    """Load float32, int32, or unsigned bytes as int32, from memory that does not change; all pointers must be valid.

    A plain load gets its own layout, and its tile then goes through shared memory to where it is used. An elementwise
    operation takes its user's layout, and the tables looked up here are small enough to stay in the L1 cache.
    """
    if DIRECT:
        address = pointer.to(tl.int64)
        if pointer.dtype.element_ty == tl.float32:
            value = tl.inline_asm_elementwise(
                "ld.global.nc.f32 $0, [$1];", "=f,l", [address], dtype=tl.float32, is_pure=True, pack=1
            )
        elif pointer.dtype.element_ty == tl.uint8:
            value = tl.inline_asm_elementwise(
                "ld.global.nc.u8 $0, [$1];", "=r,l", [address], dtype=tl.int32, is_pure=True, pack=1
            )
        elif pointer.dtype.element_ty == tl.int32:
            value = tl.inline_asm_elementwise(
                "ld.global.nc.s32 $0, [$1];", "=r,l", [address], dtype=tl.int32, is_pure=True, pack=1
            )
        else:
            value = tl.load(pointer).to(tl.int32)
    elif pointer.dtype.element_ty == tl.float32:
        value = tl.load(pointer)
    else:
        value = tl.load(pointer).to(tl.int32)
    return value


@triton.jit
def store_in_layout(pointer, value, wanted):
    """Store float32 from the layout that it has; threads that share a value all store it, to the same place.

    A plain store gets its own layout, and its tile goes through shared memory, with barriers.
    """
    if DIRECT:
        tl.inline_asm_elementwise(
            "{.reg .pred p; setp.ne.s32 p, $3, 0; @p st.global.f32 [$1], $2; mov.u32 $0, 0;}", "=r,l,f,r",
            [pointer.to(tl.int64), value, wanted.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        tl.store(pointer, value, mask=wanted)


@triton.jit
def add_to(pointer, value):
    """Add float32 to memory from the layout that it has, like `store_in_layout`; no two threads may share a value."""
    if DIRECT:
        tl.inline_asm_elementwise(
            "red.relaxed.gpu.global.add.f32 [$1], $2; mov.u32 $0, 0;", "=r,l,f",
            [pointer.to(tl.int64), value], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        tl.atomic_add(pointer, value, sem="relaxed")


@triton.jit
def count_at_most(sorted_ptr, num, x, num_steps):
    """How many of the ``num`` sorted int64 values are ≤ x, for each x; ``num_steps`` ≥ bit length of num."""
    low = tl.zeros_like(x).to(tl.int32)
    high = low + num
    for _ in range(num_steps):
        middle = (low + high) >> 1
        open_ = low < high
        below = tl.load(sorted_ptr + middle, mask=open_, other=0) <= x
        low = tl.where(open_ & below, middle + 1, low)
        high = tl.where(open_ & (below == 0), middle, high)
    return low


@triton.jit
def saturating_sum(a, b):
    """a + b of float32, clamped to [0, 1]."""
    if DIRECT:
        total = tl.inline_asm_elementwise(
            "add.sat.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        total = tl.minimum(tl.maximum(a + b, 0.0), 1.0)
    return total


@triton.jit
def tanh(x, FAST: tl.constexpr):
    """tanh of float32."""
    if FAST:
        y = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
    return y


@triton.jit
def silu_of_half(half, FAST: tl.constexpr):
    """SiLU(s) from half = s / 2: half + half · tanh(half), one special-function operation."""
    return half + half * tanh(half, FAST) if FAST else 2.0 * half / (1.0 + tl.exp(-2.0 * half))


@triton.jit
def through_silu(grad, half, tanh_half):
    """Twice the gradient of s from that of SiLU(s), given half = s / 2 and its tanh: three multiply-adds."""
    outer = grad + grad * tanh_half
    return outer + outer * (half - half * tanh_half)
