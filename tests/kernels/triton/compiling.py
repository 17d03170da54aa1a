"""Compile a Triton kernel for a GPU that is not there, and read what the compiler made of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARGUMENT_TYPES = {
    "offsets": "*i64",
    "num_context": "*i64",
    "num_targets": "*i64",
    "thresholds": "*i64",
    "query_time": "*i64",
    "key_time": "*i64",
    "near": "*u8",
    **dict.fromkeys(["q", "k", "v", "out", "grad", "q_grad", "k_grad", "v_grad"], "*bf16"),
    **dict.fromkeys(["start", "stop", "context", "history", "order", "ranges", "bounds", "unsorted"], "*i32"),
    **dict.fromkeys(["position", "time", "position_sums", "time_sums"], "*fp32"),
}
FLOATS = {"inverse_norm", "scale"}


@dataclass(frozen=True)
class Report:
    """Registers a thread, bytes of stack (where spills go), shared memory, and counts of instructions."""

    registers: int
    stack: int
    shared: int
    spills: int
    wgmma: int
    mma: int
    wide_loads: int
    barriers: int


def compile_for(
    kernel: Any,
    arch: int,
    constants: dict[str, Any],
    num_warps: int,
    num_stages: int,
    types: dict[str, str] | None = None,
) -> Report:
    """Types of arguments by name: pointers from ``types`` and the table above, integers otherwise.

    Pointers and strides are taken as multiples of 16, as those of real tensors are.
    """
    known = ARGUMENT_TYPES | (types or {})
    signature: dict[str, str] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = known[name.removesuffix("_ptr")]
            aligned[(index,)] = [["tt.divisibility", 16]]
        elif name in FLOATS:
            signature[name] = "fp32"
        else:
            signature[name] = known.get(name, "i32")
            if name.endswith(("_stride", "_head", "_group", "width")):
                aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return read_report(compiled.asm["cubin"], compiled.metadata.shared)


def read_report(cubin: bytes, shared: int) -> Report:
    """`cuobjdump --dump-resource-usage` and `nvdisasm`, both from Triton's own wheel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [BIN / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        code = subprocess.run([BIN / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout

    def used(key: str) -> int:
        return max(int(n) for n in re.findall(rf"{key}:(\d+)", usage))

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    return Report(
        registers=used("REG"),
        stack=used("STACK"),
        shared=shared,
        spills=count(r"\b(?:LDL|STL)\b"),
        wgmma=count(r"\b(?:HGMMA|UTCHMMA|UTCQMMA)\b"),
        mma=count(r"\bHMMA\b"),
        wide_loads=count(r"\bLDG\.E\.(?:\w+\.)*128\b") + count(r"\bLDGSTS\.E\.(?:\w+\.)*128\b"),
        barriers=count(r"\bBAR\."),
    )


@cache
def triton_version() -> tuple[int, int]:
    """(major, minor)."""
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)
