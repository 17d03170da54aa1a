"""Other tile shapes for attention, for whoever tunes `kernels/attention/triton_tile.py`: run last, if time is left."""

from __future__ import annotations

from bench.gpu_attention import make_case, timings
from bench.gpu_report import Clock, Row, row
from kernels.attention.triton_tile import Tile

FORWARD = [Tile(128, 64, 8, 2), Tile(64, 64, 4, 3), Tile(128, 128, 8, 2), Tile(64, 128, 4, 2)]
QUERIES = [Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(64, 64, 8, 3)]
KEYS = [Tile(32, 128, 8, 2), Tile(64, 128, 8, 2), Tile(32, 64, 4, 2), Tile(64, 64, 4, 2)]


def sweep(clock: Clock) -> list[Row]:
    """B 32, N 4096, H 4, d 128 and B 512, N 128, H 4, d 64; forward, dQ, dK and dV, with rab."""
    rows: list[Row] = []
    shapes = {"d128": (1, 20, 1, 16), "d64": (2, 12, 1, 16)} if clock.rehearsal else {
        "d128": (32, 4096, 4, 128), "d64": (512, 128, 4, 64)
    }  # fmt: skip
    for name, shape in shapes.items():
        case = make_case(clock, *shape)
        for forward, queries, keys in list(zip(FORWARD, QUERIES, KEYS, strict=False))[: 1 if clock.rehearsal else None]:
            if clock.left_s < 40 and not clock.rehearsal:
                return rows
            tiles = (None, None, None) if clock.rehearsal else (forward, queries, keys)
            try:
                ms = timings(case, clock, tiles)
            except Exception as failure:  # noqa: BLE001
                # A shape that does not fit this GPU is an answer too.
                rows.append(row(f"tiles {name} {tiles}", None, "", note=repr(failure)[:120]))
                continue
            for part, tile in zip(("forward", "queries", "keys"), tiles, strict=True):
                rows.append(row(f"tile {name} {part} {tile}", ms[f"{part} rab"], "ms"))
    return rows
