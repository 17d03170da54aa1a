"""Triton's interpreter with the same results in a third of the time, for rehearsals and tests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Make this process's interpreter skip work that changes no result.

    Triton 3.6 patches its whole language again whenever a kernel calls a function, although the launch has already done
    so; and it computes whether integers overflow, but reads the answer only in debug mode. For each operation it makes
    the shapes of its operands and of its result anew, and compares them as lists of its own.
    """
    _remember_shapes()
    patch = interpreter._patch_lang  # noqa: SLF001 - Triton has no public way
    both = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def patched(_: Any) -> Any:
        scope = patch(both)
        # Triton 3.6 takes int() of one-element arrays, which NumPy 2.4 refuses.
        scope.set_attr(tl.core.tensor, "__index__", lambda tensor: int(tensor.handle.data.item()))
        return scope

    interpreter._patch_lang = patched  # noqa: SLF001

    convert = interpreter._implicit_cvt  # noqa: SLF001

    def converted(argument: Any) -> Any:
        if isinstance(argument, bool):  # Triton 3.6 makes an int32 of it and then refuses that
            return tl.tensor(interpreter.TensorHandle(np.array([argument]), tl.int1), tl.int1)
        return convert(argument)

    interpreter._implicit_cvt = converted  # noqa: SLF001

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)


def _remember_shapes() -> None:
    """Make each shape once, and let operands of one shape through."""
    core, semantic = tl.core, interpreter.TritonSemantic
    make_type, broadcast = core.block_type.__init__, semantic.broadcast_impl_value

    @cache
    def of_type(sizes: tuple[int, ...]) -> tuple[Any, int, str]:
        made = object.__new__(core.block_type)
        make_type(made, tl.float32, list(sizes))
        return made.shape, made.numel, str(made.shape)

    @cache
    def of_tensor(sizes: tuple[int, ...]) -> Any:
        return core.tuple([core.constexpr(size) for size in sizes])

    def type_of(self: Any, element: Any, shape: Any) -> None:
        sizes = shape.value if isinstance(shape, core.constexpr) else shape
        self.shape, self.numel, name = of_type(
            tuple([size.value if isinstance(size, core.constexpr) else size for size in sizes])
        )
        self.element_ty, self.name = element, f"<{name}, {element}>"

    def tensor_of(self: Any, handle: Any, made: Any) -> None:
        sizes = tuple(made.shape.values) if made.is_block() else ()
        self.handle, self.type, self.dtype, self.shape = handle, made, made.scalar, of_tensor(sizes)
        self.numel = core.constexpr(made.numel if sizes else 1)

    def broadcast_unequal(self: Any, left: Any, right: Any) -> Any:
        return (left, right) if left.shape is right.shape else broadcast(self, left, right)

    core.block_type.__init__, core.tensor.__init__ = type_of, tensor_of
    semantic.broadcast_impl_value = broadcast_unequal
    _remember_types()


def _remember_types() -> None:
    """Look up NumPy's name for a type once."""
    found = cache(interpreter._get_np_dtype)  # noqa: SLF001

    def dtype_of(known: Any) -> Any:
        element = known.element_ty if isinstance(known, tl.block_type) else known
        return np.dtype(np.uint64) if isinstance(element, tl.pointer_type) else found(element)

    interpreter._get_np_dtype = dtype_of  # noqa: SLF001
