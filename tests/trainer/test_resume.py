"""A trainer is killed with -9 wherever it may be, and goes on as if it had not been: on the stream, and on a file."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.trainer.points import POINTS
from tests.trainer.stage import Stage

Make = Callable[..., Stage]


def live_and_die(stage: Stage, point: str, broken: tuple[str, ...] = ()) -> None:
    """One life that ends at a point, while the stream goes on."""
    child = stage.start(point=point, broken=broken)
    for _ in range(200):
        if child.status is not None:
            break
        stage.feed(6)
    status = child.wait(30)
    assert status == -9, f"{point}: ended with {status}:\n{child.log()[-3000:]}"
    stage.note_journal()


def test_killed_at_every_point_it_trains_everything_exactly_once(stage: Make) -> None:
    made, rng = stage(), random.Random(5)
    points = [f"{name}:{rng.randint(1, 3) if name != 'claimed' else 1}:kill" for name in POINTS]
    rng.shuffle(points)
    for point in points:
        live_and_die(made, point)
    made.start()
    made.feed(20)
    recount = made.finish()
    assert len({each.manifest.lineage for each in recount.versions}) == 1
    assert recount.last.epoch == len(points)
    assert recount.stale == []
    made.check_checkpoint(made.check(recount))
