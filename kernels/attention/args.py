"""The C++ attention's arguments: mirrors of the structs in ``csrc/attention.h``, field by field."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from kernels import library


class TensorArg(ctypes.Structure):
    """``HeadraceTensor``: (rows, heads, width), contiguous along the width; strides in elements."""

    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("head", ctypes.c_int64)]

    @classmethod
    def of(cls, tensor: Tensor | None) -> TensorArg:
        """A pointer to a (rows, heads, width) tensor; NULL for None."""
        if tensor is None:
            return cls(None, 0, 0)
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _integers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


class AttentionArgs(ctypes.Structure):
    """``HeadraceAttention``."""

    _fields_ = [
        *_integers("num_users", "num_heads", "qk_dim", "v_dim", "num_threads", "is_bf16"),
        ("scale", ctypes.c_double),
        *[(name, TensorArg) for name in ("q", "k", "v", "cache_k", "cache_v", "out")],
        *_pointers("offsets", "cache_start", "cache_len", "num_context", "num_targets", "pos_bias", "time_bias"),
        *_integers("num_pos", "pos_heads", "num_buckets", "time_heads"),
        *_pointers("buckets"),
        *_integers("bucket_bytes"),
        *[(name, TensorArg) for name in ("grad", "dq", "dk", "dv")],
        *_integers("cache_grad"),
        *_pointers("dpos", "dtime"),
    ]


class BucketsArgs(ctypes.Structure):
    """``HeadraceBuckets``."""

    _fields_ = [
        *_integers("num_users", "num_threads", "num_thresholds", "bucket_bytes"),
        *_pointers("offsets", "cache_start", "cache_len", "query_time", "key_time", "cache_time"),
        *_pointers("num_context", "thresholds", "buckets"),
    ]


def inner_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def require_supported(tensor: Tensor, op: str) -> None:
    """Raise ValueError unless the dtype is one that the C++ kernels take: float32 or bfloat16."""
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"{op}: expected float32 or bfloat16 for backend 'cpp', got {tensor.dtype}; use backend='reference'"
        )


def table(bias: Tensor | None) -> Tensor | None:
    """A bias as the kernels read it: float32, contiguous."""
    if bias is None or (bias.dtype is torch.float32 and bias.is_contiguous()):
        return bias
    return bias.detach().to(torch.float32).contiguous()


def run(name: str, *args: ctypes.Structure) -> None:
    """Call a kernel of the level in use, for the dtype of its tensors. Raises MemoryError."""
    dtype = torch.bfloat16 if getattr(args[0], "is_bf16", 0) else torch.float32
    if library.function(name, dtype)(*(ctypes.byref(one) for one in args)) != 0:
        raise MemoryError(f"{name}: no memory for temporary buffers; use smaller batches or fewer threads")
