"""Measurements, one JSON object per line, so that a comparison can be made in pieces and put together.

A record is one pass of one recommender: ``stream``, ``num_actions``, ``task`` (retrieval or ranking), ``who``,
``setting``, ``seed``, its numbers (`bench.evaluation`), ``seconds``, and how it was measured: ``command``, ``commit``,
``machine``.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
BETTER = {"retrieval": ("hr10", 1), "ranking": ("ne", -1)}
"""The deciding metric of each task, and its sign."""
# Student's t, two-sided 95%, by degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def spoken(name: str, arguments: Iterable[str]) -> str:
    """The command for a record: files and folders are reduced to their names."""
    return " ".join([name, *(Path(each).name if os.sep in each else each for each in arguments)])


def read(paths: Iterable[Path]) -> list[Record]:
    """All records in some files; if a pass occurs twice, the later record."""
    found: dict[tuple[Any, ...], Record] = {}
    for path in paths:
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                found[key(record)] = record
    return list(found.values())


def append(path: Path | None, record: Record) -> None:
    """Append a line to the file, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def key(record: Record) -> tuple[Any, ...]:
    """What identifies the pass."""
    return tuple(record[name] for name in ("stream", "num_actions", "task", "who", "setting", "seed"))


def measure(record: Record) -> float:
    """The deciding number."""
    value = record[BETTER[record["task"]][0]]
    return math.nan if value is None else float(value)


def best_setting(records: Sequence[Record]) -> str:
    """The best setting among one recommender's records on one stream, by the seeds that all settings were run with."""
    by_setting = defaultdict[str, dict[int, float]](dict)
    for record in records:
        by_setting[record["setting"]][record["seed"]] = measure(record)
    shared = set.intersection(*(set(each) for each in by_setting.values())) or {records[0]["seed"]}
    sign = BETTER[records[0]["task"]][1]

    def mean(setting: str) -> float:
        values = [value for seed, value in by_setting[setting].items() if seed in shared]
        return sign * sum(values) / len(values) if values else -math.inf

    return max(by_setting, key=mean)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the half-width of its 95% interval by Student's t; 0 for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, _T95[min(len(values) - 2, len(_T95) - 1)] * deviation / math.sqrt(len(values))
