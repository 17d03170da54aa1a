"""A table from records: for each stream Headrace, its parts, and every rival at its best setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.evaluation import LATELY
from bench.output.records import BETTER, Record, best_setting, interval, measure
from bench.single_pass import OURS

MARGIN = 1.1
"""The factor by which Headrace should beat the best rival's HR@10."""
NE_MARGIN = 0.995
Row = dict[str, Any]


def rows_of(records: Sequence[Record], *, frontier: bool) -> list[Row]:
    """Rows of every stream. ``frontier``: Headrace by targets per step."""
    rows: list[Row] = []
    for stream, num in dict.fromkeys((record["stream"], record["num_actions"]) for record in records):
        here = [record for record in records if (record["stream"], record["num_actions"]) == (stream, num)]
        rows += _frontier(stream, here) if frontier else _comparison(stream, here)
    return rows


def _comparison(stream: str, records: Sequence[Record]) -> list[Row]:
    rows: list[Row] = []
    for task, (measured, sign) in BETTER.items():
        mine = [record for record in records if record["task"] == task and record[measured] is not None]
        everybody = [best(mine, who) for who in dict.fromkeys(record["who"] for record in mine)]
        everybody.sort(key=lambda each: (each["who"] not in OURS, -sign * each["value"]))
        rivals = [each for each in everybody if each["who"] not in OURS]
        for each in everybody:
            row = {"name": f"{stream}: {each['who']}", "unit": "HR@10" if measured == "hr10" else "NE", **each}
            if each["who"] == OURS[0] and rivals:
                target = rivals[0]["value"] * (MARGIN if sign > 0 else NE_MARGIN)
                is_met = sign * (each["value"] - target) >= 0
                row |= {"target": round(target, 4), "met": bool(is_met)}
                row["note"] += f"; best rival: {rivals[0]['who']}"
            rows.append(row)
    return rows


def best(records: Sequence[Record], who: str) -> dict[str, Any]:
    """One recommender on one stream: its best setting's mean over seeds, and its other metrics."""
    mine = [record for record in records if record["who"] == who]
    setting = best_setting(mine)
    runs = [record for record in mine if record["setting"] == setting]
    value, half = interval([measure(record) for record in runs])
    found: dict[str, Any] = {
        "who": who, "value": round(value, 5), "half_width": round(half, 5), "num_seeds": len(runs), "setting": setting,
        "num_settings": len({record["setting"] for record in mine}), "num_actions": runs[0]["num_actions"],
        "num": runs[0]["num"], "seconds": runs[0]["seconds"],
    }  # fmt: skip
    if runs[0]["task"] == "retrieval":
        found |= {name: _mean([record[name] for record in runs]) for name in ("hr50", "ndcg10", "mrr")}
        found["lately"] = _mean([record["lately"]["hr10"] for record in runs])
    else:
        found["lately"] = _mean([record["lately"]["all"] for record in runs])
        found["kinds"] = {kind: _mean([record["kinds"][kind]["ne"] for record in runs]) for kind in runs[0]["kinds"]}
    speeds = [record["interactions_per_s"] for record in runs if "interactions_per_s" in record]
    if speeds:
        found["interactions_per_s"] = round(sum(speeds) / len(speeds))
    return found | {"note": _note(found)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 5) if known else None


def _note(found: dict[str, Any]) -> str:
    parts = [f"± {found['half_width']:.4f} ({found['num_seeds']} seeds)"] if found["num_seeds"] > 1 else []
    if found["lately"] is not None:
        parts.append(f"last {LATELY:,}: {found['lately']:.4f}")
    if found.get("ndcg10") is not None:
        parts.append(f"HR@50 {found['hr50']:.4f}, NDCG {found['ndcg10']:.4f}, MRR {found['mrr']:.4f}")
    if "kinds" in found:
        shown = [(kind, ne) for kind, ne in found["kinds"].items() if ne is not None]
        parts.append(", ".join(f"{kind} {ne:.3f}" for kind, ne in shown))
    if found["num_settings"] > 1:
        parts.append(f"{found['setting']} (best of {found['num_settings']})")
    if "interactions_per_s" in found:
        parts.append(f"{found['interactions_per_s']:,}/s")
    return "; ".join(parts)


def _frontier(stream: str, records: Sequence[Record]) -> list[Row]:
    """Headrace by targets per step: quality and speed."""
    rows: list[Row] = []
    mine = [record for record in records if record["who"] == OURS[0]]
    settings = sorted({record["setting"] for record in mine}, key=lambda text: int(text.split()[0]))
    for setting in settings:
        for task, (measured, _) in BETTER.items():
            runs = [record for record in mine if (record["setting"], record["task"]) == (setting, task)]
            if runs and runs[0][measured] is not None:
                found = best(runs, OURS[0])
                unit = "HR@10" if task == "retrieval" else "NE"
                rows.append({"name": f"{stream}: {setting}", "unit": unit, **found})
    return rows
