"""Draws records as SVG, without a library: for each stream, a bar per recommender, and HR@10 in the course of the
stream."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from bench.output.comparison import best
from bench.output.records import BETTER, Record
from bench.single_pass import OURS

WIDTH, ROW, GAP, LABEL, BARS, PLOT = 1000, 20, 56, 190, 330, 360
INK, PALE, OWN, LINES = "#1f2933", "#c9d2da", "#0b6bcb", ("#0b6bcb", "#d9480f", "#2b8a3e", "#7048b6", "#868e96")


def draw(records: Sequence[Record]) -> str:
    """One panel per stream and task."""
    panels, y = list[str](), 44
    for stream, num in dict.fromkeys((record["stream"], record["num_actions"]) for record in records):
        for task in BETTER:
            here = [
                each for each in records if (each["stream"], each["num_actions"], each["task"]) == (stream, num, task)
            ]
            here = [each for each in here if each[BETTER[task][0]] is not None]
            if here:
                body, height = _panel(stream, num, task, here, y)
                panels.append(body)
                y += height + GAP
    return "\n".join([head(WIDTH, y), f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>', *panels, "</svg>", ""])


def head(width: int, height: int) -> str:
    """The start of a picture."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">'
    )


def _panel(stream: str, num: int, task: str, records: Sequence[Record], y: int) -> tuple[str, int]:
    sign = BETTER[task][1]
    everybody = [best(records, who) for who in dict.fromkeys(record["who"] for record in records)]
    everybody.sort(key=lambda each: -sign * each["value"])
    measured = "HR@10 (higher is better)" if task == "retrieval" else "normalised entropy (lower is better)"
    parts = [text(16, y - 12, f"{stream}, {num:,} actions: {measured}", weight="bold")]
    lowest = 0.0 if task == "retrieval" else min(each["value"] for each in everybody) - 0.05
    most = max(each["value"] + each["half_width"] for each in everybody)
    for number, each in enumerate(everybody):
        parts += _bar(each, y + number * ROW, lowest, most)
    if task == "retrieval":
        parts += _curves(records, everybody, y, max(ROW * len(everybody), 150))
    return "\n".join(parts), max(ROW * len(everybody), 150 if task == "retrieval" else 0)


def _bar(each: dict[str, Any], y: int, lowest: float, most: float) -> list[str]:
    span = (BARS - 60) / max(1e-9, most - lowest)
    width, half = (each["value"] - lowest) * span, each["half_width"] * span
    middle, x, colour = y + ROW / 2, LABEL + 10 + width, OWN if each["who"] == OURS[0] else PALE
    parts = [
        text(LABEL, y + 14, each["who"], anchor="end", weight="bold" if each["who"] == OURS[0] else "normal"),
        f'<rect x="{LABEL + 10}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}"/>',
        text(x + half + 6, y + 14, f"{each['value']:.4f}"),
    ]
    if half:
        parts.append(f'<path d="M{x - half:.1f} {middle}H{x + half:.1f}" stroke="{INK}" stroke-width="1.5"/>')
    return parts


def _curves(records: Sequence[Record], everybody: Sequence[dict[str, Any]], y: int, height: int) -> list[str]:
    """HR@10 by window: Headrace, the best rivals, and popularity."""
    rivals = [each for each in everybody if each["who"] not in OURS]
    shown = [each for each in everybody if each["who"] == OURS[0]] + rivals[:3]
    shown += [each for each in rivals[3:] if each["who"] == "most popular"]
    lines = []
    for each in shown:
        runs = [r for r in records if (r["who"], r["setting"]) == (each["who"], each["setting"])]
        lines.append((each["who"], [sum(at) / len(runs) for at in zip(*(r["windows"] for r in runs), strict=True)]))
    top = max((value for _, line in lines for value in line), default=0.0) or 1.0
    x0, parts = LABEL + 10 + BARS + 40, list[str]()
    for share in (0.0, 0.5, 1.0):
        at = y + height * (1 - share)
        parts.append(f'<path d="M{x0} {at:.1f}h{PLOT}" stroke="{PALE}"/>')
        parts.append(text(x0 - 6, at + 4, f"{top * share:.2f}", anchor="end"))
    for number, (who, line) in enumerate(lines):
        step = PLOT / max(1, len(line) - 1)
        points = " ".join(f"{x0 + i * step:.1f},{y + height * (1 - value / top):.1f}" for i, value in enumerate(line))
        colour = LINES[number % len(LINES)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(text(x0 + number % 3 * 125, y + height + 16 + number // 3 * 15, who, colour=colour))
    return parts


def text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal", colour: str = INK) -> str:
    """Text at a position."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
        f"{escape(words)}</text>"
    )
