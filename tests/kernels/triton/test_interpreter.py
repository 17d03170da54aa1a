"""Triton's interpreter is selected when triton is imported, so its tests run in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(__file__).with_name("interpreted")
STEPS, STREAMS = [FOLDER / "test_elsewhere.py"], [FOLDER / "test_streams.py", FOLDER / "test_ranks.py"]
"""Each takes as long as the others together."""


@pytest.mark.parametrize(
    "files", [STEPS, STREAMS, sorted(set(FOLDER.glob("test_*.py")) - {*STEPS, *STREAMS})],
    ids=["whole steps", "streams", "the others"],
)  # fmt: skip
def test_every_kernel_equals_its_reference_in_the_interpreter(files: list[Path]) -> None:
    pytest.importorskip("triton", reason="triton comes with torch on Linux")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        # Triton 3.6's interpreter converts one-element arrays to integers, which NumPy deprecates.
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis",
         "-W", "ignore:Conversion of an array", *map(str, files)],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
