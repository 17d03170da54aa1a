"""The demo's display: a live page on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.lag_view import STAGES, LagView
from wire.lag import STALE_S

PLAIN_EVERY_S = 5.0
WHAT = {
    "ingest": "actions not read yet",
    "sequence": "examples not delivered yet",
    "train": "examples not learned yet",
    "publish": "learned, not published yet",
    "serve": "published, not served yet",
}


class Screen(Protocol):
    """Shows a `LagView` until the ``with`` block ends."""

    def show(self) -> None:
        """Draw the view's current state."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_screen(view: LagView, *, plain: bool) -> Screen:
    """A live page if there is a terminal, else plain lines."""
    return PlainScreen(view) if plain or not sys.stdout.isatty() else LiveScreen(view)


class PlainScreen:
    """One line every five seconds."""

    def __init__(self, view: LagView) -> None:
        self.view = view
        self._shown_s = 0.0

    def show(self) -> None:
        """Print a line, unless the last one is less than five seconds old."""
        if time.monotonic() - self._shown_s >= PLAIN_EVERY_S:
            self._shown_s = time.monotonic()
            print(plain_line(self.view), flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LiveScreen:
    """A page redrawn in place."""

    def __init__(self, view: LagView) -> None:
        self.view = view
        self._live = Live(page(view), console=Console(), auto_refresh=False, transient=False)

    def show(self) -> None:
        """Redraw it."""
        self._live.update(page(self.view), refresh=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


def plain_line(view: LagView) -> str:
    """The view on one line."""
    return (
        f"{view.elapsed_s:5.0f} s  {view.phase}  sent {view.num_sent:,} of {view.num_actions:,}  "
        f"trained {view.num_trained:,}  lag: {lags(view)}  HR@10 {number(view.hr10())} (popular "
        f"{number(view.hr10('popular_unseen'))})  NE {number(view.entropy())}  version {view.version}  "
        f"fresh {seconds(view.freshness_now_s)}"
    )


def page(view: LagView) -> Panel:
    """The view on one page; all of it fits a terminal of 80 by 24."""
    where = f"   page: {view.page}" if view.page else ""
    head = Text.assemble((view.phase, "bold"), f"   {view.elapsed_s:.0f} s{where}")
    about = Text(f"{view.dataset} through {view.broker}", no_wrap=True, overflow="ellipsis")
    bars = Table.grid(padding=(0, 1), expand=True)
    bars.add_column(width=8)
    bars.add_column(ratio=1)
    bars.add_column(no_wrap=True)
    total = max(view.num_actions, 1)
    for name, num in (("sent", view.num_sent), ("trained", view.num_trained)):
        rate = f"{view.rate:,.0f} actions/s" if name == "sent" else _rate(view)
        bars.add_row(name, ProgressBar(total=total, completed=min(num, total)), f"{num:,} of {total:,}   {rate}")
    body = Group(head, about, Text(), bars, Text(), tables(view))
    return Panel(body, title="headrace", border_style="cyan", padding=(0, 2))


def _rate(view: LagView) -> str:
    per_s = view.lag.get("throughput", {}).get("interactions_per_s")
    return f"{per_s:,.0f} interactions/s" if per_s is not None else ""


def tables(view: LagView) -> Columns:
    """Both tables, side by side if there is space."""
    return Columns([stage_table(view), quality_table(view)], padding=(0, 4))


def stage_table(view: LagView) -> Table:
    """How far each stage is behind."""
    table = Table(title="lag by stage", title_justify="left", box=None, padding=(0, 1))
    table.add_column("stage")
    table.add_column("records", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("", style="dim", no_wrap=True)
    for name in STAGES:
        stage = view.stage(name)
        table.add_row(name, _count(stage.get("lag_records")), seconds(stage.get("lag_s")), WHAT[name])
    return table


def quality_table(view: LagView) -> Table:
    """How well the newest weights predicted what came next, before learning from it."""
    table = Table(title="before learning it", title_justify="left", box=None, padding=(0, 1))
    for name in ("", "so far", "recent", "popular"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("HR@10", number(view.hr10()), number(view.hr10(window=True)), number(view.hr10("popular_unseen")))
    table.add_row("NE", number(view.entropy()), number(view.entropy(window=True)), number(view.entropy(baseline=True)))
    table.add_row("loss", number(view.lag.get("loss", {}).get("total")), "", "")
    table.add_row("version", view.version, "", "")
    table.add_row("fresh", seconds(view.freshness_now_s), "", "")
    return table


def number(value: Any) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def _count(value: Any) -> str:
    return "–" if value is None else f"{value:,}"


def seconds(value: Any) -> str:
    """Seconds to a tenth, or a dash."""
    return "–" if value is None else f"{value:.1f} s"


def lags(view: LagView) -> str:
    """How many records wait at each stage, and for how long, where that is longer than reports take to arrive."""
    return " ".join(_lag_of(name, view.stage(name)) for name in STAGES)


def _lag_of(name: str, stage: dict[str, Any]) -> str:
    behind_s = stage.get("lag_s") or 0.0
    return f"{name} {_count(stage.get('lag_records'))}" + (f" ({behind_s:,.1f} s)" if behind_s > STALE_S else "")
