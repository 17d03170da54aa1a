"""`python -m bench recovery [--quick]`: how long two ranks take to recover with a million items (100,000: ``--quick``).

After a kill torchrun starts all ranks again. So two processes are started as torchrun does it, with a checkpoint of
that many items: they import, rank 0 reads the checkpoint and sends the other one its share of the rows, and they
compute a live step. torchrun's own time (about a second) and the recorded steps after the checkpoint come on top.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.scale import CONFIG, Traffic, fill
from bench.streams.simulated import MODEL
from bench.timing import Row, row
from headrace.broker import free_port
from headrace.processes import ROOT
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.snapshot import restore_learner
from trainer.learner.step import Learner
from trainer.loop import Trainer
from trainer.ranks.messages import join
from trainer.ranks.replica import Replica

SIZE, RECOVERED_S = 2, 15.0
TRAINER = replace(CONFIG, shards=SIZE, whole_table_bytes=0)


def keep(folder: Path, num_items: int) -> None:
    """Write the checkpoint of a trainer with this many items."""
    traffic = Traffic(num_items)
    trainer = Trainer(MODEL, TRAINER, lambda _: traffic, checkpoint_dir=folder)
    trainer.start()
    fill(trainer, num_items)
    trainer.turn()
    trainer.finish()
    trainer.close()


def recover(folder: Path, num_items: int) -> None:
    """Run one rank from its start to its third step; rank 0 prints the times."""
    began_s = time.perf_counter()
    torch.set_num_threads(1)
    ranks = join(60.0)
    assert ranks is not None
    if ranks.rank > 0:
        Replica(ranks).run()
        ranks.close()
        return
    learner, traffic = Learner(MODEL, TRAINER, ranks=ranks), Traffic(num_items)
    checkpoint = CheckpointFolder(folder, print).load()
    assert checkpoint is not None
    read_s = time.perf_counter()
    restore_learner(learner, checkpoint)
    del checkpoint
    restored_s = time.perf_counter()
    traffic.restore(learner.histories)
    steps_s = [learner.step(traffic.poll(0.0)).seconds for _ in range(3)]
    found = {
        "load_s": read_s - began_s, "restore_s": restored_s - read_s, "first_s": steps_s[0], "step_s": steps_s[-1],
        "done_ns": time.time_ns(),
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    ranks.close()


def start(folder: Path, num_items: int) -> tuple[float, dict[str, Any]]:
    """Seconds from the start of the processes to the end of the third step, and the times that rank 0 printed."""
    where = {"WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    began_ns = time.time_ns()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.recovery", str(folder), str(num_items)], stdout=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, **where, "RANK": str(rank), "GOMP_SPINCOUNT": "1000"},
        )
        for rank in range(SIZE)
    ]  # fmt: skip
    said = [process.communicate(timeout=140)[0] for process in processes]
    found: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    return (found["done_ns"] - began_ns) / 1e9, found


def run(quick: bool = False) -> list[Row]:
    """The rows of the report."""
    torch.set_num_threads(1)
    num_items = 100_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, "-m", "bench.recovery", str(folder), str(num_items), "keep"], cwd=ROOT, check=True
        )
        took_s, first = start(folder, num_items)
    label = f"{num_items:,} items, {SIZE} ranks"
    note = f"the checkpoint {first['load_s']:.1f} s, into place {first['restore_s']:.1f} s"
    return [
        row(f"{label}: from their start to the third step", took_s, "s", RECOVERED_S, note, most=True),
        row(f"{label}: the first step, which gives the other its rows", first["first_s"], "s",
            note=f"the third: {first['step_s']:.3f} s"),
    ]  # fmt: skip


if __name__ == "__main__":
    (keep if len(sys.argv) > 3 else recover)(Path(sys.argv[1]), int(sys.argv[2]))
