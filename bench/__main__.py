"""`python -m bench NAME [--quick]`: a table for people, then one JSON object as the last line.

A measurement is a module of this folder with ``run(quick: bool) -> list[row]``; a row is a dict with ``name``,
``value``, ``unit``, ``target`` (or None), ``met`` (or None) and, if it helps, ``note``. Rows that miss their targets
are kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.records import spoken

HERE = Path(__file__).parent


def names() -> list[str]:
    """The available measurements: modules that have a ``run``."""
    return sorted(
        path.stem
        for path in HERE.glob("*.py")
        if path.stem[0] != "_" and "\ndef run(" in path.read_text(encoding="utf-8")
    )


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
    """Print the table."""
    table = Table("", "value", "unit", "target", "met", "note", title=title, title_justify="left")
    for row in rows:
        target = "" if row.get("target") is None else f"{row['target']:g}"
        met = {True: "yes", False: "no", None: ""}[row.get("met")]
        value = row["value"] if isinstance(row["value"], str) or row["value"] is None else f"{row['value']:,.4g}"
        table.add_row(row["name"], str(value), row["unit"], target, met, str(row.get("note", "")))
    Console(width=None if sys.stdout.isatty() else 170).print(table)


def report(name: str, arguments: list[str], rows: list[dict[str, Any]], out: Path | None) -> int:
    """Print the table and the JSON object of a measurement with options of its own; write the object to ``out``."""
    show(rows, f"{name} on {machine()}, commit {commit()}")
    made = {"bench": name, "machine": machine(), "commit": commit(), "command": spoken(name, arguments), "rows": rows}
    if out:
        out.write_text(json.dumps(made) + "\n", encoding="utf-8")
    print(json.dumps(made))
    return 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures side by side.")
    parser.add_argument("name", choices=names(), help="what to measure")
    parser.add_argument("--quick", action="store_true", help="ends within a minute")
    arguments, rest = parser.parse_known_args()
    module = f"bench.{arguments.name}"
    assert find_spec(module) is not None
    measurement = import_module(module)
    if hasattr(measurement, "command"):  # it has options and a report of its own
        return int(measurement.command([*rest, *(["--quick"] if arguments.quick else [])]))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    rows = measurement.run(quick=arguments.quick)
    title = f"{arguments.name} on {machine()}, commit {commit()}"
    show(rows, title)
    print(json.dumps({"bench": arguments.name, "machine": machine(), "commit": commit(), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
