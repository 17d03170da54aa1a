"""`headrace versions`: the published versions of the weights, according to their manifests."""

from __future__ import annotations

import time

import msgspec
from rich.console import Console
from rich.table import Table

from headrace.config import Settings
from headrace.machine import size
from wire.assembler import ManifestAssembler
from wire.kafka.consumer import connect, read, spans
from wire.topics import Topics
from wire.weights import Manifest


def manifests(settings: Settings) -> list[Manifest]:
    """The manifest of every version in the weights topic that a reader of the topic would take, in order: not those of
    a fenced epoch, and not those of which chunks are missing."""
    topic = Topics.under(settings.kafka.prefix, settings.kafka.line).weights
    consumer, assembler = connect(settings.kafka), ManifestAssembler(on_drop=lambda _: None)
    try:
        found = (
            assembler.feed(each.key, each.headers, each.value) for each in read(consumer, topic, spans(consumer, topic))
        )
        return [version.manifest for version in found if version is not None]
    finally:
        consumer.close()


def show(settings: Settings, *, as_json: bool = False, num_last: int = 20) -> int:
    """Print the last ``num_last`` versions, the newest last."""
    listed = manifests(settings)[-num_last:]
    if as_json:
        for manifest in listed:
            row = {name: getattr(manifest, name) for name in manifest.__struct_fields__ if name != "plan"}
            print(msgspec.json.encode(row | {"num_steps": len(manifest.plan)}).decode())
        return 0
    if not listed:
        Console().print("no version has been published yet; is a trainer running? (headrace train)")
        return 0
    line = f", line {settings.kafka.line}" if settings.kafka.line else ""
    Console().print(_table(listed, f"versions on {settings.kafka.bootstrap}{line}"))
    return 0


def _table(listed: list[Manifest], title: str) -> Table:
    table = Table(title=title)
    for name in ("version", "kind", "onto"):
        table.add_column(name)
    for name in ("size", "learned", "steps", "age", "fresh"):
        table.add_column(name, justify="right")
    now_ms = time.time() * 1000
    for each in listed:
        table.add_row(
            f"{each.epoch}/{each.number}",
            each.kind,
            f"{each.epoch}/{each.onto_number}" if each.onto_number >= 0 else "–",
            size(each.num_bytes),
            f"{each.num_interactions:,}",
            str(len(each.plan)),
            duration((now_ms - each.created_ms) / 1000),
            duration((each.created_ms - each.newest_record_ms) / 1000) if each.newest_record_ms > 0 else "–",
        )
    return table


def duration(seconds: float) -> str:
    """A duration for people: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    for limit, unit, name in ((10, 1.0, "s"), (120, 1.0, "s"), (7200, 60.0, "min"), (172_800, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds:.1f} {name}" if limit == 10 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"
