"""The chart of `bench.freshness`: HR@10 by how often weights are renewed, relative to fresh ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.output.chart import LINES, PALE, head, text

WIDTH, HEIGHT, LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 720, 330, 70, 46, 470, 220


def draw_curves(rows: Sequence[dict[str, Any]]) -> str:
    """One line per stream."""
    lines: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        stream, _, often = row["name"].partition(": weights renewed ")
        if often:
            lines.setdefault(stream, []).append((often, row["value"]))
    names = [often for often, _ in next(iter(lines.values()), [])]
    step = PLOT_WIDTH / max(1, len(names) - 1)
    parts = [
        head(WIDTH, HEIGHT),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(LEFT, 24, "HR@10 by how often the weights are renewed (histories are always fresh)", weight="bold"),
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = TOP + PLOT_HEIGHT * (1 - share)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{PLOT_WIDTH}" stroke="{PALE}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{share:.0%}", anchor="end"))
    for number, often in enumerate(names):
        parts.append(text(LEFT + number * step, TOP + PLOT_HEIGHT + 20, often, anchor="middle"))
    ends: list[float] = []
    for number, (stream, line) in enumerate(sorted(lines.items(), key=lambda pair: -pair[1][-1][1] / pair[1][0][1])):
        fresh, colour = line[0][1] or 1.0, LINES[number % len(LINES)]
        points = [(LEFT + i * step, TOP + PLOT_HEIGHT * (1 - value / fresh)) for i, (_, value) in enumerate(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        ends.append(max(points[-1][1] + 4, ends[-1] + 15 if ends else 0.0))
        words = f"{stream}: {line[0][1]:.3f} → {line[-1][1]:.3f}"
        parts.append(text(LEFT + PLOT_WIDTH + 12, ends[-1], words, colour=colour))
    return "\n".join([*parts, "</svg>", ""])
