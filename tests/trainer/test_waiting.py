"""A trainer that waits for its broker."""

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_trainer_that_waits_for_its_broker_ends_when_it_is_told_to(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", "--bootstrap", "127.0.0.1:1", "--checkpoint-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert any("broker away" in line for line in process.stdout), "it says what it waits for"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
