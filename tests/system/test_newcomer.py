"""A newcomer with the README alone: from nothing on a broker to the first recommendation by own actions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import REPOSITORY, Broker, free_port
from tests.commands import BLOCK

FIRST = "make setup && . .venv/bin/activate"
FIVE_MINUTES_S = 300


def block() -> str:
    """The README's block, without what installs the commands that the tests have already."""
    (found,) = [each for each in BLOCK.findall((REPOSITORY / "README.md").read_text()) if each.startswith(FIRST)]
    return found.split("\n", 1)[1]


@pytest.mark.slow
def test_the_block_of_the_readme_ends_with_a_recommendation_by_the_actions_that_it_sent(
    kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    if kafka.kind == "embedded" or shutil.which("curl") is None:
        pytest.skip("the example's producer needs Apache Kafka, and the block needs curl")
    port = str(free_port())
    script = block().replace("localhost:9092", kafka.bootstrap).replace("localhost:8080", f"127.0.0.1:{port}")
    script = script.replace("examples/", f"{REPOSITORY}/examples/")
    script = script.replace("$HEADRACE_KAFKA__BOOTSTRAP ", f"$HEADRACE_KAFKA__BOOTSTRAP {topic_prefix}.actions.v1 ")
    ours = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
        "HEADRACE_KAFKA__PREFIX": topic_prefix, "HEADRACE_SERVING__PORT": port, "HEADRACE_STREAM__METRICS_PORT": "0",
        "HEADRACE_TRAINER__METRICS_PORT": "0",
    }  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as said, subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script + "\nkill $(jobs -p); wait"], env={**os.environ, **ours},
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, _ = process.communicate(timeout=FIVE_MINUTES_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    answers = [json.loads(line) for line in out.splitlines() if line.startswith('{"version"')]
    assert len(answers) == 1, out + log.read_text()
    (answer,) = answers
    assert answer["num_history"] == 1
    assert {each["item"] for each in answer["items"]} == {42, "i43"}, "what others met, without what u17 has seen"
