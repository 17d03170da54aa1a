"""`python -m bench gpu` is run once on a machine that is lent for minutes: its whole course is rehearsed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_gpu_measurement_runs_from_end_to_end_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton comes with torch on Linux")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "gpu", "--rehearse", "--budget-s", "3000", "--out", str(tmp_path)],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["failures"] == []
    assert result == json.loads((tmp_path / "gpu.json").read_text())
    promised = [row for row in result["rows"] if row["target"] is not None]
    assert len(promised) >= 13
    assert all(row["value"] is not None for row in promised)


def test_a_section_that_fails_is_kept_and_the_rest_still_runs(tmp_path: Path) -> None:
    from bench.gpu_report import Clock, Report, row

    report = Report(Clock("cpu", 60.0), tmp_path, {"machine": "none"})
    report.section("broken", lambda clock: [row("x", 1 / 0, "")], need_s=1)
    report.section("whole", lambda clock: [row("value", 2.0, "x", 1.0)], need_s=1)
    report.section("late", lambda clock: [row("value", 2.0, "x")], need_s=1e9)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [each["name"] for each in written["rows"]] == ["broken", "value", "late"]
    assert written["rows"][1]["met"] is True
    assert len(written["failures"]) == 1


def test_without_a_gpu_the_measurement_says_so() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "gpu"], capture_output=True, text=True, cwd=ROOT, check=False,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected an NVIDIA GPU" in done.stderr
