"""Every launch that the ops make, compiled for a GPU that is not there instead of run.

`compiling_launches` replaces Triton's launcher: argument types, alignment and constants are taken from the real
arguments, as Triton takes them; the kernel is compiled, and nothing runs. Results are whatever memory held.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32", torch.uint8: "*u8",
    torch.int16: "*i16", torch.bool: "*i1",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")
MAX_GRID = (2**31 - 1, 65_535, 65_535)
SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}
"""The most that a program may have, by architecture."""


def source_of(kernel: Any, values: dict[str, Any]) -> ASTSource:
    """A kernel and its arguments as Triton would specialise them."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        plain = isinstance(value, int) and not isinstance(value, bool)
        if parameter.is_constexpr or value is None or (plain and value == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        address = value.data_ptr() if isinstance(value, Tensor) else value
        divides = (isinstance(value, Tensor) or (plain and not parameter.do_not_specialize)) and address % 16 == 0
        if divides and signature[name] != "constexpr":
            aligned[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs=constants, attrs=aligned)


@contextmanager
def compiling_launches(architecture: int, compiles: bool = True) -> Iterator[dict[str, set[str]]]:
    """Within it, launches compile (or are only looked at); yields each kernel seen and the versions of it."""
    seen: dict[str, set[str]] = {}

    def compile_instead(kernel: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        assert all(0 < size <= most for size, most in zip(grid, MAX_GRID, strict=False)), grid
        options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
        values = dict(zip(kernel.arg_names, args, strict=False)) | keywords
        source = source_of(kernel, values)
        version = f"{source.signature} {source.constants} {source.attrs} {options}"
        versions = seen.setdefault(kernel.fn.__name__, set())
        if version in versions:
            return
        versions.add(version)
        if compiles:
            compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
            assert compiled.metadata.shared <= SHARED_BYTES[architecture], kernel.fn.__name__

    ours = [module for name, module in list(sys.modules.items()) if name.startswith("kernels.")]
    known = {
        "require_device": lambda *_: None, "num_processors": lambda _: 132, "architecture": lambda _: architecture,
    }  # fmt: skip
    with mock.patch.object(JITFunction, "run", compile_instead):
        patches = []
        for module in ours:
            for name, value in known.items():
                if hasattr(module, name):
                    patches.append(mock.patch.object(module, name, value))
        for patch in patches:
            patch.start()
        try:
            yield seen
        finally:
            for patch in patches:
                patch.stop()
