"""What the compiler made of a kernel: registers, spills, shared memory, and the most telling instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Report:
    """Registers per thread, bytes of stack (for spills), shared memory, and counts of instructions.

    ``waits``: for matrix products in flight (Hopper). If there are as many as products, each waits for the one before,
    because the compiler found that something else writes their registers in between.
    """

    registers: int
    stack: int
    shared: int
    spills: int
    wgmma: int
    waits: int
    mma: int
    wide_loads: int
    barriers: int


def read_report(compiled: Any) -> Report:
    """The report from `cuobjdump --dump-resource-usage` and `nvdisasm`, both part of Triton's wheel."""
    return _report(compiled.asm["cubin"], compiled.metadata.shared)


@cache
def _report(cubin: bytes, shared: int) -> Report:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([BIN / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        )

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
        waits=count(r"\bWARPGROUP\.DEPBAR\b"),
        mma=count(r"\bHMMA\b"),
        wide_loads=count(r"\bLDG\.E\.(?:\w+\.)*128\b") + count(r"\bLDGSTS\.E\.(?:\w+\.)*128\b"),
        barriers=count(r"\bBAR\."),
    )


@cache
def triton_version() -> tuple[int, int]:
    """(major, minor)."""
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)
