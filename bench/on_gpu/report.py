# mypy: allow-untyped-calls
"""Rows of a GPU run: each is on disk before the next one is measured, whatever happens then."""

from __future__ import annotations

import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
FAILED = "failed: "
"""How the note of a row begins that stands for a measurement which failed."""


@dataclass
class Clock:
    """Medians by device events (by host clock without a GPU), and how much of the run's time is left."""

    device: str
    budget_s: float
    repeats: int = 20
    compiles_only: bool = False
    began_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until the run should be over."""
        return self.budget_s - (time.monotonic() - self.began_s)

    @property
    def rehearsal(self) -> bool:
        """No GPU: everything runs once, and no number means anything."""
        return self.device == "cpu"

    def median_ms(self, run: Callable[[], Any], repeats: int | None = None) -> float:
        """One warm-up that may compile, one more, then the median."""
        if self.rehearsal:
            began = time.perf_counter()
            run()
            return (time.perf_counter() - began) * 1e3
        run()
        if self.compiles_only:
            torch.cuda.synchronize()
            return 1.0
        run()
        pairs = []
        for _ in range(repeats or self.repeats):
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            run()
            pair[1].record()
            pairs.append(pair)
        torch.cuda.synchronize()
        return float(statistics.median(a.elapsed_time(b) for a, b in pairs))

    def graph_ms(self, run: Callable[[], Any]) -> float:
        """Median of replays of a captured graph: device time without launch gaps."""
        if self.rehearsal or self.compiles_only:
            return self.median_ms(run)
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return self.median_ms(graph.replay)


def row(
    name: str, value: float | None, unit: str, target: float | None = None, note: str = "", at_most: bool = False
) -> Row:
    """``met``: value ≥ target, or ≤ with ``at_most``; None without either."""
    met = None
    if value is not None and target is not None:
        met = bool(value <= target) if at_most else bool(value >= target)
    return {"name": name, "value": value, "unit": unit, "target": target, "met": met, "note": note}


def guarded(clock: Clock, name: str, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of one of several measurements: if it fails, that is a row, and the others still run. Raises what it
    raised if the GPU is lost."""
    try:
        yield from rows
    except Exception as failure:
        if not (clock.rehearsal or gpu_works()):
            raise
        print(traceback.format_exc(), flush=True)
        yield row(name, None, "", note=f"{FAILED}{failure!r}"[:300])


class Report:
    """Runs sections in order of importance and keeps their results, with those of earlier workers (``before``)."""

    def __init__(self, clock: Clock, file: Path | None, facts: dict[str, Any], before: dict[str, Any]) -> None:
        self.clock, self.file, self.facts = clock, file, facts
        self.rows: list[Row] = before.get("rows", [])
        self.seconds: dict[str, float] = before.get("seconds", {})
        self.failures: list[str] = before.get("failures", [])
        self.current: dict[str, Any] | None = None

    def section(self, name: str, measure: Callable[[Clock], Iterable[Row]], need_s: float) -> bool:
        """Run a section; a failure or lack of time becomes a row, and the rest still runs. False: the GPU is lost."""
        if self.clock.left_s < need_s:
            self.add(row(name, None, "", note=f"not run: {self.clock.left_s:.0f} s left, needs {need_s:.0f}"))
            self.close(name, 0.0)
            return True
        began = time.monotonic()
        self.current = {"name": name, "since": time.time()}
        self._write()
        usable = True
        try:
            for each in measure(self.clock):
                self.add(each)
                if each["value"] is None and each["note"].startswith(FAILED):
                    self.failures.append(f"{name}: {each['name'].strip()}: {each['note']}")
        except Exception as failure:  # noqa: BLE001
            # Runs on a GPU are rare: record what went wrong, and measure everything else.
            print(traceback.format_exc(), flush=True)
            self.failures.append(f"{name}: {failure!r}")
            self.add(row(name, None, "", note=f"{FAILED}{failure!r}"[:300]))
            usable = self.clock.rehearsal or gpu_works()
        self.close(name, time.monotonic() - began)
        if usable and not self.clock.rehearsal:
            torch.cuda.empty_cache()
        return usable

    def add(self, each: Row) -> None:
        """Keep a row, also on disk."""
        self.rows.append(each)
        value = "-" if each["value"] is None else f"{each['value']:,.4g}"
        met = {True: "met", False: "MISSED", None: ""}[each["met"]]
        goal = each["target"] or ""
        print(f"{each['name']:<58} {value:>12} {each['unit']:<10} {goal:>8} {met:<7}{each['note']}", flush=True)
        self._write()

    def close(self, name: str, seconds: float) -> None:
        """Record that a section has ended."""
        self.seconds[name] = round(seconds, 1)
        self.current = None
        print(f"-- {name}: {self.seconds[name]} s, {self.clock.left_s:.0f} s left", flush=True)
        self._write()

    def _write(self) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_name(f"{self.file.name}.part")
            partial.write_text(json.dumps(self.as_json(), indent=1) + "\n")
            partial.replace(self.file)

    def as_json(self) -> dict[str, Any]:
        """What is written."""
        found = {"bench": "gpu", **self.facts, "seconds": self.seconds, "failures": self.failures, "rows": self.rows}
        return found | ({"current": self.current} if self.current else {})


def gpu_works() -> bool:
    """Whether this process can still use its GPU: after an illegal access it never can."""
    try:
        torch.cuda.synchronize()
        return float(torch.ones(8, device="cuda").sum()) == 8.0
    except Exception:  # noqa: BLE001  (whatever it is, the context is lost)
        return False
