"""`python -m bench NAME [--quick]`: a table for people, then one JSON object as the last line.

A measurement is a module of this folder with ``run(quick: bool) -> list[row]``; a row is a dict with ``name``,
``value``, ``unit``, ``target`` (or None), ``met`` (or None) and, if it helps, ``note``. Rows that miss their targets
are kept. One with options of its own has ``command(arguments: list[str]) -> int`` instead.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.options import parser_of
from bench.output.report import report

HERE = Path(__file__).parent
TOPICS: dict[str, tuple[str, ...]] = {
    "Are the recommendations good?": ("quality", "oracle", "hard", "domains", "days", "precision"),
    "How do published systems compare?": ("published", "published_stream", "systems", "scaling", "lengths"),
    "Does it keep up with a world that changes?": (
        "freshness", "drift", "feedback", "live_ranking", "moves", "exposure",
    ),
    "How soon is an action seen and learned?": ("live", "stream", "restart", "rebalance"),
    "How fast are answers?": ("serving", "shards", "ranking", "search", "reuse"),
    "How fast is a training step?": ("live_training", "kernels", "gpu", "gpu_host", "ranks"),
    "What do large catalogues cost?": ("scale", "growth", "on_disk", "deltas", "recovery", "ready"),
}  # fmt: skip
"""Each measurement under the question that it answers."""


def names() -> list[str]:
    """The available measurements: modules that have a ``run`` or a ``command``."""
    is_one = re.compile(r"^def (run|command)\(", re.MULTILINE)
    return sorted(path.stem for path in HERE.glob("*.py") if is_one.search(path.read_text(encoding="utf-8")))


def summary(name: str) -> str:
    """The first paragraph of a measurement's docstring, without the command in front of it."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or ""
    found = re.sub(r"^`[^`]*`: ", "", " ".join(text.split("\n\n")[0].split()))
    return found[:1].upper() + found[1:]


def listing() -> str:
    """All measurements, by question."""
    lines = [
        "usage: python -m bench NAME [--quick] …",
        "",
        "Measures side by side: a table, then one JSON object as the last line.",
        "--quick ends within a minute or two; python -m bench NAME --help says what is measured, and how.",
    ]
    for topic, members in TOPICS.items():
        lines += ["", topic]
        for name in members:
            lines += textwrap.wrap(summary(name), 110, initial_indent=f"  {name:<17} ", subsequent_indent=" " * 20)
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name not in names():
        print(f"bench: expected one of {', '.join(names())}; got {name}", file=sys.stderr)
        return 2
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `headrace` sets it: OpenMP's idle threads sleep soon
    measurement: Any = import_module(f"bench.{name}")
    if hasattr(measurement, "command"):
        return int(measurement.command(rest))
    options = parser_of(name, measurement.__doc__).parse_args(rest)
    return report(name, rest, measurement.run(quick=options.quick), options.out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
