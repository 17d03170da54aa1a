"""Every launch that the ops make, compiled for an absent GPU instead of run.

`compiling_launches` gives Triton a driver for such a GPU and lets it do everything before a launch: bind the arguments,
specialise on their types and alignment, compile. Nothing runs; results are whatever is in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

MAX_GRID = (2**31 - 1, 65_535, 65_535)
SHARED_BYTES = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""The most shared memory that a program may have, by architecture."""
_DEVICES = count(1000)


class AbsentGPU:
    """The parts of a driver that are used before a launch; each has its own device, for which nothing is compiled."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self._device = next(_DEVICES)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_launches(
    architecture: int, compiles: bool | Collection[str] = True
) -> Iterator[dict[str, dict[str, Any]]]:
    """Inside the block, launches only compile (all, those of the named kernels, or none); yields kernels' versions."""
    seen: dict[str, dict[str, Any]] = {}
    run, do_compile = JITFunction.run, JITFunction._do_compile

    def run_instead(kernel: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        assert all(0 < size <= most for size, most in zip(grid, MAX_GRID, strict=False)), grid
        run(kernel, *args, grid=grid, warmup=True, **keywords)

    def compile_instead(kernel: Any, key: str, signature: Any, device: int, *rest: Any) -> Any:
        name = kernel.fn.__name__
        wanted = compiles if isinstance(compiles, bool) else name in compiles
        compiled = do_compile(kernel, key, signature, device, *rest) if wanted else object()
        kernel.device_caches[device][0][key] = compiled
        if wanted:
            assert compiled.metadata.shared <= SHARED_BYTES[architecture], name
        seen.setdefault(name, {})[key] = compiled
        return compiled

    known = {
        "require_device": lambda *_: None, "num_processors": lambda _: 132, "architecture": lambda _: architecture,
    }  # fmt: skip
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("kernels.")]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(driver, "_active", AbsentGPU(architecture)))
        stack.enter_context(mock.patch.object(JITFunction, "run", run_instead))
        stack.enter_context(mock.patch.object(JITFunction, "_do_compile", compile_instead))
        for module in ours:
            for name, value in known.items():
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, value))
        yield seen
