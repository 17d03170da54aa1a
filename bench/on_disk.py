"""`python -m bench on_disk [--quick]`: live steps with tables in files (``trainer.tables_folder``) and little memory.

A learner with full neighbourhoods for every item (a million with ``--quick``) makes live steps (`bench scale`) three
times: with its tables in memory; in files, with all the memory that they need; and in files with less, because another
process fills the rest of the machine. That process leaves `LEFT_BYTES` to everybody else and to the pages of the files.
Beside the time of a step, the rows say how much of the tables was in memory, and how many bytes a step read from the
disk. ``HEADRACE_BENCH_FOLDER`` names a folder on another disk, ``HEADRACE_BENCH_ITEMS`` another number of items.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.growth import grown
from bench.scale import CONFIG, Traffic
from bench.timing import Row, row
from trainer.learner.step import Learner
from trainer.process import tune_interpreter

NUM_STEPS, LEFT_BYTES = 200, 6_000_000_000
FILL = "import sys; held = bytearray(b'1') * int(sys.argv[1]); print('full', flush=True); sys.stdin.read()"


def of_process(name: str) -> int:
    """Bytes by a name of /proc/self/status, or of /proc/self/io."""
    lines = [*Path("/proc/self/status").read_text().splitlines(), *Path("/proc/self/io").read_text().splitlines()]
    value = next(line for line in lines if line.startswith(f"{name}:")).split()
    return int(value[1]) * (1024 if value[-1] == "kB" else 1)


def available_bytes() -> int:
    """What programs can get, pages of files included."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])


@contextmanager
def little_memory() -> Iterator[None]:
    """While another process holds all memory but `LEFT_BYTES`."""
    num_bytes = available_bytes() - LEFT_BYTES
    command = [sys.executable, "-c", FILL, str(max(1, num_bytes))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield
        finally:
            holder.communicate()


def live_steps(learner: Learner, traffic: Traffic, name: str) -> list[Row]:
    """A row about `NUM_STEPS` live steps after half as many for a warm-up."""
    took_s, before = list[float](), 0
    for number in range(NUM_STEPS + NUM_STEPS // 2):
        if number == NUM_STEPS // 2:
            before = of_process("read_bytes")
        began_s = time.perf_counter()
        learner.step(traffic.poll(0.0))
        took_s.append(time.perf_counter() - began_s)
    took_ms = 1000 * np.array(took_s[NUM_STEPS // 2 :])
    read_mb = (of_process("read_bytes") - before) / 1e6 / NUM_STEPS
    held, in_files = of_process("RssAnon") / 1e9, (of_process("RssShmem") + of_process("RssFile")) / 1e9
    note = (
        f"{1000 / took_ms.mean():.1f} steps/s, p99 {np.percentile(took_ms, 99):.0f} ms, {read_mb:.1f} MB read a step, "
        f"resident: {held:.1f} GB and {in_files:.1f} GB of files"
    )
    return [row(f"{name}: a live step, median", float(np.median(took_ms)), "ms", note=note)]


def measure(num_items: int, folder: str, *, squeezed: bool) -> list[Row]:
    """The rows for one place of the tables; empty: memory."""
    began_s = time.perf_counter()
    learner, _ = grown(num_items, replace(CONFIG, tables_folder=folder))
    where = "in files" if folder else "in memory"
    name = f"{num_items:,} items {where}"
    rows = [row(f"{name}: filled in", time.perf_counter() - began_s, "s")]
    traffic = Traffic(num_items)
    traffic.restore(learner.histories)
    rows += live_steps(learner, traffic, name)
    if squeezed:
        with little_memory():
            rows += live_steps(learner, traffic, f"{name}, {LEFT_BYTES / 1e9:.0f} GB left")
    return rows


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    torch.set_num_threads(1)
    tune_interpreter()
    num_items = int(os.environ.get("HEADRACE_BENCH_ITEMS", "1_000_000" if quick else "10_000_000"))
    rows = list[Row]()
    with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_FOLDER")) as folder:
        for place in ("", folder):
            rows += measure(num_items, place, squeezed=bool(place) and not quick)
            gc.collect()
    return rows
