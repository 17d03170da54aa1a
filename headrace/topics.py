"""`headrace topics`: what each topic holds, whether its settings are right, and creating those that are missing."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.config import Settings
from wire.kafka.admin import config_drift, ensure_topics, untold
from wire.kafka.consumer import connect, spans
from wire.topics import topics_of


def show(settings: Settings, *, create: bool = False, as_json: bool = False) -> int:
    """Print one line per topic. Exit status 1 if one is missing, or differs in its settings or number of partitions."""
    if create:
        ensure_topics(settings.kafka)
    consumer = connect(settings.kafka)
    try:
        present, others = consumer.topics(), config_drift(settings.kafka)
        hidden = untold(settings.kafka)
        rows = []
        for topic in topics_of(settings.kafka):
            held = spans(consumer, topic.name) if topic.name in present else {}
            rows.append(
                {
                    "topic": topic.name,
                    "present": bool(held),
                    "partitions": len(held) or topic.num_partitions,
                    "partitions_configured": topic.num_partitions,
                    "first_offset": [span.first for span in held.values()],
                    "end_offset": [span.end for span in held.values()],
                    "settings": dict(topic.settings),
                    "is_told": topic.name not in hidden,
                    "broker_has": others.get(topic.name, {}),
                }
            )
    finally:
        consumer.close()
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print_table(settings, rows)
    return 0 if all(row["present"] and not row["broker_has"] and not _is_divided_otherwise(row) for row in rows) else 1


def _is_divided_otherwise(row: dict[str, Any]) -> bool:
    return bool(row["partitions"] != row["partitions_configured"])


def _print_table(settings: Settings, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"topics on {settings.kafka.bootstrap}")
    table.add_column("topic", no_wrap=True)
    table.add_column("partitions", justify="right")
    table.add_column("offsets")
    table.add_column("settings")
    for row in rows:
        ranges = "  ".join(f"{low}–{high}" for low, high in zip(row["first_offset"], row["end_offset"], strict=True))
        table.add_row(row["topic"], _partitions(row), ranges or "[red]missing[/]", _settings(row))
    console = Console()
    console.print(table)
    if not all(row["present"] for row in rows):
        console.print("create what is missing: headrace topics --create")
    if any(row["broker_has"] for row in rows):
        console.print("a topic keeps the settings it was created with: change them with kafka-configs.sh --alter")
    if any(map(_is_divided_otherwise, rows)):
        console.print("headrace doctor says what to do about another number of partitions")


def _partitions(row: dict[str, Any]) -> str:
    if _is_divided_otherwise(row):
        return f"[red]{row['partitions']}, configured {row['partitions_configured']}[/]"
    return str(row["partitions"])


def _settings(row: dict[str, Any]) -> str:
    if not row["present"]:
        return "–"
    differing = [f"{key} = {has}, configured {row['settings'][key]}" for key, has in row["broker_has"].items()]
    return (
        f"[red]{'; '.join(differing)}[/]"
        if differing
        else "as configured"
        if row["is_told"]
        else "not told by the broker"
    )
