"""bfloat16 for Triton's interpreter, which stores the bits as uint16 and would multiply those instead of the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Handle = interpreter.TensorHandle


def values(handle: Any) -> np.ndarray[Any, Any]:
    """A handle's values; bfloat16 as float32."""
    if handle.dtype.scalar != tl.bfloat16:
        return np.asarray(handle.data)
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def rounded(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bits of the nearest bfloat16, ties to even, as in hardware."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded_up = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded_up).astype(np.uint16)


def install() -> None:
    """Give this process's interpreter products, sums and casts of bfloat16."""
    builder = interpreter.InterpreterBuilder

    def arithmetic(name: str, operation: Callable[..., Any]) -> None:
        known = getattr(builder, name)

        def apply(self: Any, left: Any, right: Any) -> Any:
            if left.dtype.scalar != tl.bfloat16:
                return known(self, left, right)
            return Handle(rounded(operation(values(left), values(right))), tl.bfloat16)

        setattr(builder, name, apply)

    for name, operation in (("create_fmul", np.multiply), ("create_fadd", np.add), ("create_fsub", np.subtract)):
        arithmetic(name, operation)
    known_cast, known_dot = builder.cast_impl, builder.create_dot

    def cast(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
            return Handle(rounded(source.data), tl.bfloat16)
        return known_cast(self, source, target)

    def dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return known_dot(self, a, b, d, *options)
        return Handle(np.matmul(values(a), values(b)) + d.data, d.dtype.scalar)

    def constant(self: Any, value: float) -> Any:
        return Handle(rounded(np.array([value], np.float32)), tl.bfloat16)

    builder.cast_impl, builder.create_dot = cast, dot
    builder.get_bf16 = constant  # Triton 3.6 has none
