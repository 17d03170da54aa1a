"""`headrace versions`: the published versions of the weights, according to their manifests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from kafka import KafkaConsumer
from rich.console import Console
from rich.table import Table

from headrace.config import Settings
from headrace.machine import size
from wire.assembler import ManifestAssembler
from wire.control import Which
from wire.kafka.consumer import Span, connect, read, spans
from wire.topics import Topics
from wire.weights import Manifest, claim_of

Enough = Callable[[list[Manifest]], bool]
FIRST_WINDOW = 16
"""Records, each of which may be a chunk of 900 kB: the newest version alone is often asked for."""


def manifests(settings: Settings, enough: Enough = lambda _: False, *, before: Which | None = None) -> list[Manifest]:
    """The manifests of the versions in the weights topic that a reader of the topic would take, in order: not those of
    a fenced epoch (unless the claim is before what is read here, and whoever made it has written nothing since) and not
    those of which chunks are missing.

    They are read from the end (with ``before``: from that version) backwards, in windows that grow until ``enough``
    holds of them or none is left: a week of versions takes hundreds of GB.
    """
    topic = Topics.under(settings.kafka.prefix, settings.kafka.line).weights
    consumer = connect(settings.kafka)
    try:
        held, window = spans(consumer, topic)[0], FIRST_WINDOW
        end = held.end if before is None else _offset_of(consumer, topic, held, before)
        while True:
            start = max(held.first, end - window)
            found = _valid(read(consumer, topic, {0: Span(start, end)}), is_from_the_first=start == held.first)
            found = [each for each in found if before is None or each.which < before]
            if start == held.first or enough(found):
                return found
            window *= 4
    finally:
        consumer.close()


def _offset_of(consumer: KafkaConsumer, topic: str, held: Span, which: Which) -> int:
    """An offset behind the manifests of all versions below ``which``, and seldom behind many more, by bisection: what
    comes after a complete version and is not above it does not count."""
    low, high, end = held.first, held.end, held.end
    while high - low > FIRST_WINDOW:
        middle = (low + high) // 2
        first = _first(read(consumer, topic, {0: Span(middle, high)}))
        if first is not None and first[0] < which:
            low = middle
        else:  # a version below it may have begun before the middle
            high, end = middle, end if first is None else first[1] + 1
    return end


def _first(records: Iterable[Any]) -> tuple[Which, int] | None:
    """The first version that is complete in ``records``, and the offset of its manifest."""
    assembler = ManifestAssembler(on_drop=lambda _: None)
    for each in records:
        if (version := assembler.feed(each.key, each.headers, each.value)) is not None:
            return version.manifest.which, each.offset
    return None


def _valid(records: Iterable[Any], *, is_from_the_first: bool) -> list[Manifest]:
    assembler, claimed, found = ManifestAssembler(on_drop=lambda _: None), {-1}, list[Manifest]()
    for each in records:
        if (claim := claim_of(each)) is not None and not claim.released:
            claimed.add(claim.epoch)
        if (version := assembler.feed(each.key, each.headers, each.value)) is not None:
            found.append(version.manifest)
    # An epoch that was claimed before the window has fenced off all earlier ones.
    seen = {each.epoch for each in found} | {epoch for epoch, _ in assembler.begun} | {assembler.epoch_floor}
    fenced = -1 if is_from_the_first else max(seen - claimed, default=-1)
    return [each for each in found if each.epoch >= fenced]


def show(settings: Settings, *, as_json: bool = False, num_last: int = 20) -> int:
    """Print the last ``num_last`` versions, the newest last."""
    listed = manifests(settings, lambda found: len(found) >= num_last)[-num_last:]
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
