"""The chart of `bench.live`: how long actions took to be seen and to be learned, over the minutes that a rate was
held."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.live_probe import Probe
from bench.output.chart import LINES, PALE, head, text

WIDTH, HEIGHT, LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 860, 330, 60, 56, 520, 210
WINDOW_S = 10.0
LATENCIES = (
    ("in_history_s", "seen: in the served history"),
    ("learned_s", "learned: answered by weights that know it"),
)
QUANTILES = (50, 99)


def timeline(probes: Sequence[Probe], ended_s: float) -> list[dict[str, float]]:
    """Quantiles of both latencies, in seconds, of the probes sent in each window of 10 s.

    A probe that had not arrived by ``ended_s`` counts with the time that it had waited until then.
    """
    if not probes:
        return []
    began_s, windows = probes[0].sent_s, dict[int, list[Probe]]()
    for probe in probes:
        windows.setdefault(int((probe.sent_s - began_s) / WINDOW_S), []).append(probe)
    points = []
    for number, inside in sorted(windows.items()):
        point = {"at_s": number * WINDOW_S}
        for name, _ in LATENCIES:
            waits = [(getattr(each, name) or ended_s) - each.sent_s for each in inside]
            point |= {f"{name}_p{q}": round(float(np.percentile(waits, q)), 4) for q in QUANTILES}
        points.append(point)
    return points


def draw_timeline(points: Sequence[dict[str, float]], rate: float, cores: str) -> str:
    """SVG of `timeline`; ``cores`` describes the machine."""
    last_s = max((point["at_s"] for point in points), default=0.0) or 1.0
    top = _round_up(max((value for point in points for name, value in point.items() if name != "at_s"), default=1.0))
    parts = [
        head(WIDTH, HEIGHT),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(LEFT, 24, f"{rate:,.0f} live actions/s: seconds until each is seen, and learned", weight="bold"),
        text(LEFT, 42, f"Apache Kafka, worker, trainer, server and traffic together on {cores}"),
    ]  # fmt: skip
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = TOP + PLOT_HEIGHT * (1 - share)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{PLOT_WIDTH}" stroke="{PALE}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{top * share:g}", anchor="end"))
    for share in (0.0, 0.5, 1.0):
        x, minutes = LEFT + PLOT_WIDTH * share, last_s * share / 60
        anchor = "end" if share == 1.0 else "middle"
        parts.append(text(x, TOP + PLOT_HEIGHT + 20, f"{minutes:.3g} min", anchor=anchor))
    ends = list[tuple[float, str, str]]()
    for number, (name, words) in enumerate(LATENCIES):
        for q in QUANTILES:
            places = [
                (LEFT + PLOT_WIDTH * point["at_s"] / last_s, TOP + PLOT_HEIGHT * (1 - point[f"{name}_p{q}"] / top))
                for point in points
            ]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            dashes = "" if q == QUANTILES[0] else ' stroke-dasharray="4 3"'
            parts.append(f'<polyline points="{path}" fill="none" stroke="{LINES[number]}" stroke-width="2"{dashes}/>')
            value = float(np.median([point[f"{name}_p{q}"] for point in points])) if points else 0.0
            ends.append((places[-1][1] if places else TOP, f"p{q} {value:.2f} s", LINES[number]))
        parts.append(text(LEFT + number * 260, TOP + PLOT_HEIGHT + 44, words, colour=LINES[number]))
    above = float(HEIGHT)
    for y, words, colour in sorted(ends, reverse=True):
        above = min(above - 15, y + 4)
        parts.append(text(LEFT + PLOT_WIDTH + 10, above, words, colour=colour))
    parts.append(text(LEFT + 560, TOP + PLOT_HEIGHT + 44, "of every 10 s: median, 99% dashed"))
    return "\n".join([*parts, "</svg>", ""])


def _round_up(value: float) -> float:
    """The next of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-3)))
    return float(next(power * each for each in (1, 2, 5, 10) if value <= power * each * 1.001))
