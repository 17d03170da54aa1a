"""One of two ranks that train on stand-ins for a GPU; rank 0 writes what `trained` returns."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.kernels.triton import bfloat16
from tests.kernels.triton.elsewhere import elsewhere
from tests.kernels.triton.interpreted.test_elsewhere import MODEL, OTHERS, config_of
from tests.trainer.samples import World
from trainer.learner.step import Learner
from trainer.ranks.messages import Ranks, join
from trainer.ranks.replica import Replica


def trained(most: int, ranks: Ranks | None = None) -> dict[str, Any]:
    """The losses of three steps, and what the last one waited for. ``most``: items with the exact loss."""
    with elsewhere() as gpu:
        config = config_of(most, shards=2, memory_group=8)
        learner, world = Learner(replace(MODEL, **OTHERS), config, "cuda:0", ranks=ranks), World(3)
        losses = []
        for _ in range(3):
            gpu.waits.clear()
            report = learner.step(world.examples(5))
            losses.append([report.retrieval_loss, report.ranking_loss])
        return {"losses": losses, "waits": sorted({each.split(":")[0] for each in gpu.waits})}


def main(most: int, out: Path) -> None:
    """Take part."""
    ranks = join(120.0)
    assert ranks is not None, "torchrun's variables are set"
    if ranks.rank == 0:
        found = trained(most, ranks)
        ranks.close()
        out.write_text(json.dumps(found))
    else:
        with elsewhere():
            Replica(ranks, "cuda:0").run()


if __name__ == "__main__":
    bfloat16.install()
    main(int(sys.argv[1]), Path(sys.argv[2]))
