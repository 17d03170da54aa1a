"""`headrace top`: the pipeline on a terminal, as the server's page shows it, from the topics alone."""

from __future__ import annotations

import sys
import time
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.widgets import Footer, Sparkline, Static

from headrace.config import Settings
from headrace.lines import followed
from headrace.screen import WHAT, number, seconds
from serving.pulse import Point, Pulse, Served
from serving.pulse_follower import PulseFollower
from wire.cluster import SILENT_MS
from wire.errors import HeadraceError
from wire.kafka.consumer import connect, reconnect
from wire.topics import Topics

REFRESH_S = 0.5
WIDE = 76
"""Columns of a terminal from which the stages are explained."""
COLORS = {"fresh": "green", "idle": "green", "behind": "yellow", "waiting": "yellow"}
"""The colour of each status; any other is red."""
RATE_OF = {"ingest": "actions", "sequence": "sequences", "train": "trainer", "publish": "weights", "serve": "serving"}
UNITS = {
    "ingest": "actions", "sequence": "examples", "train": "interactions", "publish": "versions", "serve": "requests",
}  # fmt: skip


def served_of(pulse: Pulse, line: str = "") -> Served:
    """The version of the live server that follows this line and is furthest behind."""
    live = [each for each in pulse.cluster.live_servers(time.time_ns() // 1_000_000) if each.line == line]
    if not live:
        return Served(line=line)
    last = min(live, key=lambda each: (each.epoch, each.number))
    return Served(
        epoch=last.epoch, number=last.number, newest_record_ms=last.newest_record_ms, swapped_ms=last.swapped_ms,
        num_swaps=max(0, last.number), num_requests=sum(each.num_requests for each in live), line=line,
    )  # fmt: skip


class Top(App[None]):
    """The screen; another thread feeds ``pulse``."""

    CSS = """
    Static { height: auto; }
    #head { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    Sparkline { height: 2; }
    .label { color: $text-muted; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit"), ("p", "pause", "Pause")]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, pulse: Pulse, broker: str) -> None:
        super().__init__()
        self._pulse, self._broker, self._paused = pulse, broker, False

    def compose(self) -> ComposeResult:
        """In order of importance, so that a small terminal cuts off the least important."""
        yield Static(f"headrace top on {self._broker}: waiting for the topics", id="head")
        with VerticalScroll():
            yield Static(id="stages")
            yield Static("freshness, last quarter of an hour", classes="label")
            yield Sparkline([], id="freshness")
            yield Static(id="quality")
            yield Static(id="processes")
        yield Footer()

    def on_mount(self) -> None:
        """Start redrawing."""
        self.set_interval(REFRESH_S, self.redraw)

    def action_pause(self) -> None:
        """Freeze the screen, or continue."""
        self._paused = not self._paused

    def redraw(self) -> None:
        """Show the newest point."""
        if self._paused or not self._pulse.points:
            return
        points = list(self._pulse.points)
        newest = points[-1]
        self.query_one("#head", Static).update(headline(newest, self._broker))
        self.query_one("#stages", Static).update(stages(newest, is_narrow=self.size.width < WIDE))
        self.query_one("#freshness", Sparkline).data = [each.freshness_s or 0.0 for each in points]
        self.query_one("#quality", Static).update(quality(newest))
        self.query_one("#processes", Static).update(processes(self._pulse, newest.unheld))


def headline(point: Point, broker: str) -> Text:
    """Status, freshness and version on one line."""
    color = COLORS.get(point.status, "red")
    version = f"{point.epoch}/{point.number}" if point.epoch >= 0 else "–"
    version += f" of line {point.line}" if point.line else ""
    rest = f"  {seconds(point.freshness_s)} old  version {version}  {broker}"
    return Text.assemble((f"● {point.status}", f"bold {color}"), rest)


def stages(point: Point, *, is_narrow: bool = False) -> Table:
    """One row per stage: its rate and how far it is behind; the bottleneck in red. Narrow: numbers alone."""
    table = Table(box=None, padding=(0, 1, 0, 0) if is_narrow else (0, 1))
    table.add_column("stage")
    for name in ("per second", "waiting", "behind"):
        table.add_column(name, justify="right")
    if not is_narrow:
        table.add_column("", style="dim", no_wrap=True)
    for name, stage in point.stages.items():
        rate = f"{point.rates.get(RATE_OF[name], 0.0):,.0f}"
        row = (name, rate if is_narrow else f"{rate} {UNITS[name]}", f"{stage.records:,}", seconds(stage.seconds))
        table.add_row(*row, *(() if is_narrow else (WHAT[name],)), style="bold red" if name == point.bottleneck else "")
    return table


def quality(point: Point) -> Text:
    """How well the newest weights predicted what came next, what they know, and how much was refused."""
    rankers = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in point.quality.items()) or "–"
    if point.frozen is not None:
        rankers += f"\nfrozen {point.frozen.hr10:.4f} after {point.frozen.num_interactions:,} interactions, "
        rankers += f"fresh {point.frozen.fresh_hr10:.4f} on the same choices"
    letters = f"{point.dead_letters:,}"
    if point.reasons:
        worst = sorted(point.reasons.items(), key=lambda pair: -pair[1])[:3]
        letters += " (" + ", ".join(f"{num:,} {reason}" for reason, num in worst) + ")"
    return Text(
        f"\nHR@10  {rankers}\nNE     {number(point.entropy)}, baseline {number(point.entropy_baseline)}\n"
        f"items  {point.num_items:,}, evicted {point.num_evicted:,}  learned {point.num_interactions:,} interactions\n"
        f"dead letters  {letters}"
    )


def processes(pulse: Pulse, unheld: str = "") -> Text:
    """Which processes are there, and which have fallen silent; ``unheld``: the partitions that no server holds."""
    text = Text("\n")
    if unheld:
        text.append(f"no server holds the users of partitions {unheld}\n", style="red")
    for each in pulse.cluster.processes(time.time_ns() // 1_000_000):
        silent = each["silent_s"] * 1000 >= SILENT_MS
        words = f"{each['role']} {each['component']}" + (f" silent for {each['silent_s']:,.0f} s" if silent else "")
        text.append(f"{words}\n", style="red" if silent else "")
    return text


def watch(settings: Settings, line: str | None = None) -> int:
    """Show a line of training (`headrace.lines.followed`) until q or Ctrl-C. Raises `wire.errors.BrokerUnavailable` if
    no broker answers, and `HeadraceError` without a terminal, whose end of input would be read for ever."""
    if not all(stream and stream.isatty() for stream in (sys.__stdin__, sys.__stderr__)):  # it draws on stderr
        raise HeadraceError(
            "expected a terminal for input and output; elsewhere `headrace lag` writes lines, and "
            "`headrace lag --once --json` one message"
        )
    connect(settings.kafka).close()
    pulse = Pulse(settings.serving.freshness_objective_s)
    with followed(settings, line) as which:
        follower = PulseFollower(
            lambda: reconnect(settings.kafka), lambda: Topics.under(settings.kafka.prefix, which()), pulse,
            lambda: served_of(pulse, which()),
        )  # fmt: skip
        follower.start()
        try:
            Top(pulse, settings.kafka.bootstrap).run()
        finally:
            follower.stop()
            follower.join(5)
    return 0
