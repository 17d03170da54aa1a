"""`python -m bench gpu` may have a GPU only for minutes, so its whole run is rehearsed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton comes with torch on Linux")

from bench.on_gpu.report import row
from bench.on_gpu.supervisor import Section, supervise

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_gpu_measurement_runs_from_end_to_end_in_the_interpreter(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--rehearse", "--budget-s", "3000", "--out", str(tmp_path)],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["failures"] == []
    assert result == json.loads((tmp_path / "gpu.json").read_text())
    promised = [row for row in result["rows"] if row["target"] is not None]
    assert len(promised) >= 13
    assert all(row["value"] is not None for row in promised)


def whole(clock: object) -> Iterator[dict[str, object]]:
    yield row("value", 2.0, "x", 1.0)


def fails_midway(clock: object) -> Iterator[dict[str, object]]:
    yield row("before it failed", 1.0, "x")
    raise ArithmeticError("midway")


def crashes(clock: object) -> Iterator[dict[str, object]]:
    yield row("before it crashed", 1.0, "x")
    os._exit(9)


def hangs(clock: object) -> Iterator[dict[str, object]]:
    yield row("before it hung", 1.0, "x")
    while True:
        time.sleep(0.1)


def test_a_section_that_fails_crashes_or_hangs_costs_its_own_rows_alone(tmp_path: Path) -> None:
    here = "tests.kernels.triton.test_rehearsal"
    names = ("fails_midway", "crashes", "hangs", "whole")
    sections = [Section(name, f"{here}:{name}", 1, 5 if name == "hangs" else 60) for name in names]
    sections.append(Section("late", f"{here}:whole", 1e9, 60))
    supervise(sections, tmp_path, True, time.time() + 600)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [each["name"] for each in written["rows"]] == [
        "before it failed", "fails_midway", "before it crashed", "crashes", "before it hung", "hangs", "value", "late",
    ]  # fmt: skip
    assert written["rows"][-2]["met"] is True
    assert [failure.split(":")[0] for failure in written["failures"]] == ["fails_midway", "crashes", "hangs"]
    assert set(written["seconds"]) == {*names, "late"}
    assert "current" not in written


def test_without_a_gpu_the_measurement_says_so() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu"], capture_output=True, text=True, cwd=ROOT, check=False,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected an NVIDIA GPU" in done.stderr
