"""`python -m bench ranks [--quick]`: how much one process with two threads learns per second, and two with one each.

Live steps (32 users with a new interaction each, 16 before it, the softmax over 3,000 items), full ones (64 users, with
gradients through the 64 interactions before) and large ones (512 users, 1,024 negatives from 100,000 items). Each
contender is started as torchrun starts processes, with the real ranks, but without source, checkpoints and publication.
The best round of each counts, by wall-clock time, because waiting for each other is part of what is measured. Bytes are
those that rank 0 sends in one step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.scale import Traffic
from bench.streams.simulated import MODEL
from bench.timing import Row, row
from headrace.broker import free_port
from headrace.processes import ROOT
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from trainer.ranks.messages import Ranks, join
from trainer.ranks.replica import Replica

DIVIDED = "large steps, tables divided"
KINDS = {
    "live steps": (32, 3_000, 0), "full steps": (64, 3_000, 64), "large steps": (512, 100_000, 0),
    DIVIDED: (512, 100_000, 0),
}  # fmt: skip
"""Users per step, items, and how many earlier interactions get gradients (0: the default)."""
CONTENDERS = {
    "one process, 2 threads": (1, 2, 1), "one process, 2 threads, 2 shards": (1, 2, 2),
    "one process, 2 threads, 8 shards": (1, 2, 8), "two processes": (2, 1, 2),
}  # fmt: skip
"""Processes, threads of each, and shards."""
EFFICIENCY, OVERHEAD = 0.9, 1.2


def learn(
    users: int, num_items: int, context: int, num_steps: int, shards: int, ranks: Ranks | None, *, divided: bool
) -> dict[str, float]:
    """Run a learner's steps; returns their median time, and the bytes that they sent."""
    config = TrainerConfig(device="cpu", shards=shards, whole_table_bytes=0 if divided else 1 << 40)
    if context:
        config = replace(config, max_train_context=context, context_gradient=True)
    learner, traffic = Learner(MODEL, config, ranks=ranks), Traffic(num_items, users)
    for start in range(0, num_items, 10_000):
        learner.items.insert(np.arange(start + 1, min(num_items, start + 10_000) + 1) * 7919, 10**12, 0)
    traffic.restore(learner.histories)
    took_s, sent, distinct = list[float](), dict[str, int](), 0
    sharding = learner.forward_pass.sharding
    for step in range(num_steps + 3):
        examples = traffic.poll(0.0)
        if step == 3 and ranks is not None and sharding is not None:
            sent, distinct = dict(ranks.num_bytes), sharding.num_row_bytes
        began_s = time.perf_counter()
        learner.step(examples)
        took_s.append(time.perf_counter() - began_s)
    found = {"step_s": median(took_s[3:]), "first_s": took_s[0]}
    if ranks is not None and sharding is not None:
        found |= {name: (num - sent[name]) / num_steps for name, num in ranks.num_bytes.items()}
        found["distinct"] = (sharding.num_row_bytes - distinct) / num_steps
        if not found["rows"]:  # they are sent with the sums
            found["rows"] = found["sums"] - 4.0 * len(learner.optimiser.flat)
    return found


def compute(num_threads: int, shards: int, num_steps: int) -> None:
    """Run one rank of a contender; rank 0 prints the results."""
    torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision("high")
    ranks = join(60.0)
    if ranks is not None and ranks.rank > 0:
        Replica(ranks).run()
        ranks.close()
        return
    found = {
        name: learn(
            *kind,
            num_steps if name == "live steps" else max(10, num_steps // 5),
            shards,
            ranks,
            divided=name == DIVIDED,
        )
        for name, kind in KINDS.items()
    }
    print(json.dumps(found), flush=True)
    if ranks is not None:
        ranks.close()


def measure(size: int, num_threads: int, shards: int, num_steps: int) -> dict[str, dict[str, float]]:
    """Start a contender's processes; returns rank 0's results."""
    where = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.ranks", str(num_threads), str(shards), str(num_steps)],
            env={**os.environ, **where, "RANK": str(rank), "GOMP_SPINCOUNT": "1000"}, stdout=subprocess.PIPE, cwd=ROOT,
        )
        for rank in range(size)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "a rank has failed; its last line says why"
    found: dict[str, dict[str, float]] = json.loads(said[0])
    return found


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    rounds: list[dict[str, Any]] = [
        {name: measure(*contender, 100 if quick else 300) for name, contender in CONTENDERS.items()}
        for _ in range(1 if quick else 3)
    ]
    rows = list[Row]()
    for kind in KINDS:
        best = {name: min(each[name][kind]["step_s"] for each in rounds) for name in CONTENDERS}
        alone_s = best["one process, 2 threads"]
        for name, took_s in best.items():
            users = KINDS[kind][0]
            note = f"{1000 * took_s:.2f} ms per step, {users / took_s:,.0f} interactions/s"
            target = EFFICIENCY if name == "two processes" else None
            rows.append(row(f"{kind}: {name}", alone_s / took_s, "x", target, note))
        sent = rounds[0]["two processes"][kind]
        note = f"{sent['distinct'] / 1e3:,.0f} kB are distinct rows; in sums {sent['sums'] / 1e3:,.0f} kB in all"
        rows += [
            row(
                f"{kind}: bytes of rows sent, over the distinct rows' bytes", sent["rows"] / sent["distinct"], "x",
                OVERHEAD, note, most=True,
            ),
            row(f"{kind}: messages of a step", sent["messages"] / 1e3, "kB", note="shards, and changed rows"),
            row(f"{kind}: the first step, which sends the whole network", sent["first_s"], "s"),
        ]  # fmt: skip
    return rows


if __name__ == "__main__":
    compute(*(int(each) for each in sys.argv[1:]))
