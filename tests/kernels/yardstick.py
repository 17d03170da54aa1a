"""How far a result is from float64, and the instruction sets that tests force."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from kernels.library import LEVELS, machine_level


def relative_error(result: Tensor, reference: Tensor) -> float:
    """|result - reference| / |reference| in float64; infinite if there is a NaN anywhere."""
    result, reference = result.double(), reference.double()
    if not bool(torch.isfinite(result).all()):
        return float("inf")
    return float((result - reference).norm() / reference.norm())


TWO_TERMS = "amx, float32 as two bfloat16 terms"


def levels() -> list[str]:
    """All instruction sets that this machine can run; with AMX, also float32 at less than the highest precision."""
    found = list(LEVELS[: LEVELS.index(machine_level()) + 1])
    return [*found, TWO_TERMS] if "amx" in found else found


def force(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """Force one of `levels` for this test."""
    monkeypatch.setenv("HEADRACE_CPU_LEVEL", level.split(",", maxsplit=1)[0])
    torch.set_float32_matmul_precision("high" if level == TWO_TERMS else "highest")  # tests/conftest.py restores it


def assert_same_bits(run: Callable[[], Mapping[str, Tensor] | Sequence[Tensor]], threads: Sequence[int]) -> None:
    """Check that ``run`` gives the same bits on any of these numbers of threads."""
    before, found = torch.get_num_threads(), list[dict[object, Tensor]]()
    try:
        for num_threads in threads:
            torch.set_num_threads(num_threads)
            results = run()
            found.append(dict(results) if isinstance(results, Mapping) else dict(enumerate(results)))
    finally:
        torch.set_num_threads(before)
    for num_threads, other in zip(threads[1:], found[1:], strict=True):
        assert other.keys() == found[0].keys()
        for name, expected in found[0].items():
            assert torch.equal(other[name], expected), f"{name} on {num_threads} threads"


def forward_limit() -> float:
    """How far float32 results may be from float64: about 16 bits per operand if it may be two bfloat16 terms."""
    return 1e-5 if torch.get_float32_matmul_precision() == "highest" else 3e-5
