"""The budget of compiled kernels: `python -m tests.kernels.triton.budget` measures it again, for this Triton."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.kernels.triton.compiling import Report, read_report, triton_version
from tests.kernels.triton.launches import compiling_launches
from tests.kernels.triton.variants import Variant, variants

FILE = Path(__file__).with_name("budget.json")


def version_key() -> str:
    """The key of this Triton's budgets: its minor version, because compilers differ."""
    return ".".join(map(str, triton_version()))


def report_of(variant: Variant, architecture: int) -> Report:
    """The report of the only version that the variant's launch compiles."""
    with compiling_launches(architecture, compiles={variant.kernel}) as seen:
        variant.launch()
    (compiled,) = seen[variant.kernel].values()
    return read_report(compiled)


def read() -> dict[str, dict[str, dict[str, int]]]:
    """version → "name sm_NN" → limits."""
    budgets: dict[str, dict[str, dict[str, int]]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return budgets


def exceeded(report: Report, limits: dict[str, int]) -> list[str]:
    """What got worse: more of what is costly, fewer matrix instructions or wide loads."""
    costs = ("registers", "stack", "spills", "shared", "waits", "barriers")
    worse = [key for key in costs if getattr(report, key) > limits[key]]
    worse += [key for key in ("wgmma", "mma", "wide_loads") if getattr(report, key) < limits[key]]
    return [f"{key}: budget {limits[key]}, compiled {getattr(report, key)}" for key in worse]


def main() -> None:
    measured = {}
    for variant in variants():
        for architecture in variant.architectures:
            name = f"{variant.name} sm_{architecture}"
            measured[name] = asdict(report_of(variant, architecture))
            sys.stdout.write(f"{name}: {measured[name]}\n")
    FILE.write_text(json.dumps(read() | {version_key(): measured}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
