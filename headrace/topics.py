"""The topics of a deployment: what each holds, whether its settings are right, and making those that are missing."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from headrace.config import Settings
from headrace.reader import connect, spans
from state.topics import topics_of


def show(settings: Settings, *, create: bool = False, as_json: bool = False) -> int:
    """Print one line a topic. Exit status 1 where one is missing."""
    if create:
        from stream.topics import ensure_topics

        ensure_topics(settings.kafka)
    consumer = connect(settings.kafka)
    try:
        present = consumer.topics()
        rows = []
        for topic in topics_of(settings.kafka):
            held = spans(consumer, topic.name) if topic.name in present else {}
            rows.append(
                {
                    "topic": topic.name,
                    "present": bool(held),
                    "partitions": len(held) or topic.num_partitions,
                    "first_offset": [span.first for span in held.values()],
                    "end_offset": [span.end for span in held.values()],
                    "settings": dict(topic.settings),
                }
            )
    finally:
        consumer.close()
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print_table(settings, rows)
    return 0 if all(row["present"] for row in rows) else 1


def _print_table(settings: Settings, rows: list[dict[str, object]]) -> None:
    table = Table(title=f"topics on {settings.kafka.bootstrap}")
    for name, justify in (("topic", "left"), ("partitions", "right"), ("offsets", "left"), ("settings", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        first, end, kept = row["first_offset"], row["end_offset"], row["settings"]
        assert isinstance(first, list)
        assert isinstance(end, list)
        assert isinstance(kept, dict)
        ranges = "  ".join(f"{low}–{high}" for low, high in zip(first, end, strict=True))
        missing = "[red]missing[/]: headrace topics --create"
        table.add_row(
            str(row["topic"]),
            str(row["partitions"]),
            ranges if row["present"] else missing,
            "  ".join(f"{key}={value}" for key, value in kept.items()),
        )
    Console().print(table)
