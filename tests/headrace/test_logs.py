"""Every process logs alike: JSON lines where nobody looks, whichever room it is and whichever library speaks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEAK = """
import logging, structlog
from headrace.logs import configure_logs
configure_logs()
structlog.get_logger("trainer").info("training", step=3)
logging.getLogger("serving.subscriber").warning("version %s", "0/1")
logging.getLogger("kafka.conn").error("spam")
logging.getLogger("uvicorn.error").info("Started server process")
"""


def test_our_words_and_the_libraries_are_json_lines_that_begin_alike() -> None:
    done = subprocess.run([sys.executable, "-c", SPEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line["level"], line["event"]) for line in lines] == [
        ("trainer", "info", "training"),
        ("serving.subscriber", "warning", "version 0/1"),
    ]
    assert lines[0]["step"] == 3
    assert all(list(line)[:4] == ["timestamp", "level", "logger", "event"] for line in lines)


@pytest.mark.parametrize("room", ["stream", "trainer", "serving"])
def test_every_process_is_configured_so(room: str) -> None:
    assert "configure_logs()" in (ROOT / room / "__main__.py").read_text()
