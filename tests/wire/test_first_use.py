"""Two threads that decode a type for the first time at once crash msgspec 0.22, which meets half of its description: so
every decoder is made when its module is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.brokers import REPOSITORY

ROOMS = ("headrace", "model", "serving", "state", "stream", "trainer", "wire")


def test_threads_may_decode_a_kind_for_the_first_time_at_once() -> None:
    command = [sys.executable, "-m", "tests.wire.first_use"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def decoded_by_type(path: Path) -> Iterator[str]:
    """Calls of ``decode(…, type=…)``, except of what has no description to be half made: lists of raw JSON."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "decode":
            for keyword in node.keywords:
                if keyword.arg == "type" and ast.unparse(keyword.value) != "list[msgspec.Raw]":
                    yield f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_no_room_decodes_by_a_type_that_it_has_made_no_decoder_of() -> None:
    found = [each for room in ROOMS for path in (REPOSITORY / room).rglob("*.py") for each in decoded_by_type(path)]
    assert found == []
