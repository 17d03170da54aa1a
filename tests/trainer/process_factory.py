"""Trainers for `tests.process_factory`: ``trainer.__main__``, unchanged or as a broken build (`tests.trainer.broken`).

They may kill or stop themselves at a point (``name:nth:kill``, ``name:nth:stop``: `tests.trainer.points`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import kernels.odds.arrays
from tests.process_factory import serve_children

PAIR_ROWS = 64
"""Instead of the default, see `tests.trainer.conftest`."""


def run(arguments: Sequence[str], broken: Sequence[str], point: str) -> int:
    """Run one trainer; returns the exit status."""
    import trainer.__main__
    from tests.trainer import broken as builds
    from tests.trainer import points

    for name in broken:
        getattr(builds, name)()
    if point:
        points.install(point)
    return trainer.__main__.main(arguments)


if __name__ == "__main__":
    # Imports whatever a trainer loads later, once for all of them.
    for name in ("adagrad", "adamw", "heads", "id_map", "layer", "length", "memory", "odds", "softmax", "tokens"):
        import_module(f"kernels.{name}.cpp")
    for name in (
        "numpy.ma",
        "torch.nested._internal.nested_tensor",
        "trainer.__main__",
        "trainer.process",
        "trainer.replay",
    ):
        import_module(name)
    kernels.odds.arrays.PAIR_ROWS = PAIR_ROWS
    serve_children(run)
