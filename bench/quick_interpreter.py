"""Triton's interpreter with the same results in a third of the time, for rehearsals and tests."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Make this process's interpreter skip work that changes no result.

    Triton 3.6 patches its whole language again whenever a kernel calls a function, although the launch has already done
    so; and it computes whether integers overflow, but reads the answer only in debug mode.
    """
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
