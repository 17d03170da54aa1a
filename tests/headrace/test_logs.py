"""Every process logs alike, in JSON lines unless on a terminal, whichever room or library the message is from."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEAK = """
import logging, structlog
from headrace.logs import configure_logs
configure_logs()
structlog.get_logger("trainer").info("training", step=3)
logging.getLogger("serving.versions.subscriber").warning("version %s", "0/1")
logging.getLogger("kafka.conn").error("spam")
logging.getLogger("stream.transport").info("[^WorkerApp]: Starting...")
logging.getLogger("uvicorn.error").info("Started server process")
"""


def test_our_messages_and_the_libraries_are_json_lines_that_begin_alike() -> None:
    done = subprocess.run([sys.executable, "-c", SPEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line["level"], line["event"]) for line in lines] == [
        ("trainer", "info", "training"),
        ("serving.versions.subscriber", "warning", "version 0/1"),
    ]
    assert lines[0]["step"] == 3
    assert all(list(line)[:4] == ["timestamp", "level", "logger", "event"] for line in lines)


def test_a_process_of_ours_logs_so(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n1::11::3::978300761\n")
    command = [sys.executable, "-m", "headrace", "train", "--file", str(tmp_path / "ratings.dat")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, *_ = [json.loads(line) for line in done.stderr.splitlines()]
    assert (first["logger"], first["level"]) == ("trainer", "info")
    assert first["event"].startswith("a file of ratings")
