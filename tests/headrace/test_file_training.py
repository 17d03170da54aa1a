"""`headrace train --file`: what cannot be read twice is trained on once, without checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.brokers import REPOSITORY

RATINGS = "".join(f"{n % 7}::{n % 11}::{n % 5 + 1}::{978300000 + n}\n" for n in range(120))


def train(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    small = {"MODEL_WIDTH": "8", "QK_WIDTH": "4", "VALUE_WIDTH": "4", "ITEM_WIDTH": "8", "NUM_LAYERS": "1"}
    environment = {**os.environ, **{f"HEADRACE_MODEL__{name}": value for name, value in small.items()}}
    return subprocess.run(
        [sys.executable, "-m", "headrace", "train", "--file", str(path), *arguments],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_pipe_is_trained_on_once_and_not_resumed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_text(RATINGS), daemon=True).start()
    done = train(pipe)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("120 interactions")
    refused = train(pipe, "--checkpoint-dir", str(tmp_path / "checkpoints"))
    assert refused.returncode == 1
    assert "can be read again after a restart" in refused.stderr.splitlines()[-1]
