"""Other tile shapes for attention, for tuning `kernels/attention/triton_tile.py`; run last, if time is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from triton.runtime.errors import OutOfResources

from bench.on_gpu.attention import make_case, parts
from bench.on_gpu.report import Clock, Row, row
from kernels.attention.triton_tile import Tile

ORDER = ("forward", "queries", "keys")
# The candidates left by sweeps on an H200 and by the compiler's reports.
TILES = {
    "d128": (
        [Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 3, 168), Tile(128, 128, 8, 2)],
        [Tile(64, 32, 4, 3), Tile(64, 32, 4, 2), Tile(128, 64, 8, 2), Tile(64, 32, 4, 4)],
        [Tile(32, 64, 4, 3), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(32, 64, 4, 4)],
    ),
    "d64": (
        [Tile(64, 64, 4, 3, 168), Tile(64, 64, 4, 3), Tile(64, 32, 4, 3, 128), Tile(64, 32, 4, 3)],
        [Tile(64, 64, 4, 2), Tile(64, 32, 4, 3), Tile(64, 64, 4, 3), Tile(128, 64, 8, 2)],
        [Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(32, 64, 4, 3, 168), Tile(64, 64, 4, 3, 168)],
    ),
}  # fmt: skip


def sweep(clock: Clock) -> Iterator[Row]:
    """B 32, N 4096, H 4, d 128; the same at d 64; and B 512, N 128, H 4, d 64; forward, dQ, dK and dV, with rab."""
    shapes = {"d128 N4096": (1, 20, 1, 16), "d64 N128": (2, 12, 1, 16)} if clock.rehearsal else {
        "d128 N4096": (32, 4096, 4, 128), "d64 N4096": (32, 4096, 4, 64), "d64 N128": (512, 128, 4, 64)
    }  # fmt: skip
    for name, shape in shapes.items():
        case = make_case(clock, *shape)
        for tiles in list(zip(*TILES[name.split()[0]], strict=True))[: 1 if clock.rehearsal else None]:
            given = (None, None, None) if clock.rehearsal else tiles
            for part, run in parts(case, True, given).items():
                if clock.left_s < 10:
                    return
                yield _timed(clock, f"tile {name} {part} {dict(zip(ORDER, given, strict=True))[part]}", run)


def _timed(clock: Clock, name: str, run: Callable[[], Any]) -> Row:
    try:
        return row(name, clock.median_ms(run), "ms")
    except OutOfResources as failure:  # that a shape does not fit this GPU is a result too
        return row(name, None, "", note=repr(failure)[:120])
