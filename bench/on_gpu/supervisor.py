"""Runs the sections of a GPU measurement in worker processes, so that one section cannot take the others with it.

A worker runs sections in turn and writes every row to disk. If a failure has broken the GPU's context, it exits, and
the supervisor starts another one for the rest. A section that exceeds its limit is ended in the same way. Before
measuring, workers that measure nothing compile what all sections need, in parallel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

RESULT = "gpu.json"
BROKEN = 3
"""A worker's exit code: the GPU's context cannot be used any more."""
WARM_S = 75.0
START_S = 120.0
"""A worker that has not begun a section by then never will."""
GRACE_S = 30.0
"""Beyond the deadline, for the section in progress."""
NOT_WARMED = ("ceilings",)


@dataclass(frozen=True)
class Section:
    """``function``: "module:name"; it is not started with less than ``need_s`` left, and is ended after ``limit_s``."""

    name: str
    function: str
    need_s: float
    limit_s: float


def facts(rehearse: bool) -> dict[str, Any]:
    """The hardware and software that the numbers were measured on."""
    import platform

    import torch
    import triton

    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        described = ""
    name = "CPU, interpreted: a rehearsal" if rehearse else torch.cuda.get_device_name(0)
    return {
        "machine": name, "commit": os.environ.get("HEADRACE_COMMIT") or described or "unknown",
        "torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version(),
        "dtype": "bfloat16",
    }  # fmt: skip


def read(folder: Path) -> dict[str, Any]:
    """The results on disk so far."""
    path = folder / RESULT
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def work(plan: dict[str, Any], folder: Path | None, rehearse: bool) -> int:
    """Run a worker: ``plan`` has the sections to run, the deadline, and whether it only compiles."""
    from bench.on_gpu.report import Clock, Report

    if rehearse:
        from bench import quick_interpreter

        quick_interpreter.install()
    clock = Clock("cpu" if rehearse else "cuda", plan["deadline"] - time.time(), compiles_only=plan["warm"])
    file = None if folder is None else folder / RESULT
    report = Report(clock, file, plan["facts"], {} if folder is None else read(folder))
    for each in plan["sections"]:
        module, name = each["function"].split(":")
        if not report.section(each["name"], getattr(import_module(module), name), each["need_s"]):
            return BROKEN
    return 0


def _start(sections: Sequence[Section], folder: Path | None, plan: dict[str, Any], rehearse: bool) -> Any:
    described = json.dumps(plan | {"sections": [asdict(section) for section in sections]})
    command = [sys.executable, "-m", "bench.gpu", "--work", described, *(["--rehearse"] if rehearse else [])]
    if folder is not None:
        command += ["--out", str(folder)]
    quiet = subprocess.DEVNULL if plan["warm"] else None
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, stdin=subprocess.DEVNULL)


def _warm(sections: Sequence[Section], plan: dict[str, Any]) -> float:
    """Compile, one process per section, so that measuring finds the kernels in Triton's cache; returns seconds."""
    began = time.monotonic()
    chosen = [section for section in sections if section.name not in NOT_WARMED]
    workers = [_start([section], None, plan | {"warm": True}, False) for section in chosen]
    until = began + min(WARM_S, max(0.0, (plan["deadline"] - time.time()) / 4))
    for worker in workers:
        try:
            worker.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    return time.monotonic() - began


def _watch(worker: Any, section_of: dict[str, Section], folder: Path, deadline: float) -> str:
    """Wait for a worker; kill it if its section exceeds its limit. Returns how it ended, in words."""
    began = time.time()
    while worker.poll() is None:
        current = read(folder).get("current") or {}
        name, since = current.get("name"), max(began, current.get("since", began))
        limit_s = section_of[name].limit_s if name in section_of else START_S
        if time.time() - since > limit_s or time.time() > deadline + GRACE_S:
            worker.kill()
            worker.wait()
            return f"ended after {time.time() - since:.0f} s"
        time.sleep(0.2)
    return f"its process ended with code {worker.returncode}"


def supervise(sections: Sequence[Section], folder: Path, rehearse: bool, deadline: float) -> dict[str, Any]:
    """Run all sections; returns the results, which are also on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    plan: dict[str, Any] = {"deadline": deadline, "warm": False, "facts": facts(rehearse)}
    left = list(sections)
    if not rehearse and deadline - time.time() > 90:
        print(f"-- compiled beforehand: {_warm(sections, plan):.0f} s", flush=True)
    while left and time.time() < deadline + GRACE_S:
        ended = _watch(_start(left, folder, plan, rehearse), {each.name: each for each in left}, folder, deadline)
        found = read(folder)
        done = set(found.get("seconds", {}))
        current = (found.get("current") or {}).get("name")
        rest = [section for section in left if section.name not in done]
        if rest and (current == rest[0].name or len(rest) == len(left)):
            _note(folder, plan["facts"], rest.pop(0), f"failed: {ended}")
        left = rest
    for section in left:
        _note(folder, plan["facts"], section, "not run: the time was over")
    return read(folder)


def _note(folder: Path, known: dict[str, Any], section: Section, why: str) -> None:
    """Add to the results what happened to a section that could not report it itself."""
    from bench.on_gpu.report import Clock, Report, row

    report = Report(Clock("cpu", 0.0), folder / RESULT, known, read(folder))
    if why.startswith("failed"):
        report.failures.append(f"{section.name}: {why}")
    report.add(row(section.name, None, "", note=why))
    report.close(section.name, 0.0)
