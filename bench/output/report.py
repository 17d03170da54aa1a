"""What a measurement prints: a table for people, then one JSON object as the last line."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.output.records import spoken

HERE = Path(__file__).parent


def machine() -> str:
    """The processor's model and number of cores."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        found = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
        model = f"{found.get('model name', model)} (model {found.get('model', '?')})"
        model += f", {sum(line.startswith('processor') for line in lines)} cores"
    return model


def commit() -> str:
    """The checkout's commit, with a + if files have been changed since."""
    run = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the table; plain lines where rich is not installed, as on a machine that has only torch."""
    if find_spec("rich") is None:
        print(title, *(f"{row['name']}: {row['value']} {row['unit']} {row.get('note', '')}" for row in rows), sep="\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "value", "unit", "target", "met", "note", title=title, title_justify="left")
    for row in rows:
        target = "" if row.get("target") is None else f"{row['target']:g}"
        met = {True: "yes", False: "no", None: ""}[row.get("met")]
        value = row["value"] if isinstance(row["value"], str) or row["value"] is None else f"{row['value']:,.4g}"
        table.add_row(row["name"], str(value), row["unit"], target, met, str(row.get("note", "")))
    Console(width=None if sys.stdout.isatty() else 170).print(table)


def report(
    name: str, arguments: list[str], rows: list[dict[str, Any]], out: Path | None = None, *, is_appended: bool = False,
    **others: Any,
) -> int:  # fmt: skip
    """Print the table and the JSON object, with ``others`` in it; write or append the object to ``out``."""
    show(rows, f"{name} on {machine()}, commit {commit()}")
    record = {
        "bench": name, "machine": machine(), "commit": commit(), "command": spoken(name, arguments), "rows": rows,
    }  # fmt: skip
    text = json.dumps(record | others)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a" if is_appended else "w", encoding="utf-8") as file:
            file.write(text + "\n")
    print(text)
    return 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of all objects in a file that was appended to."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [row for record in records for row in record["rows"]]
