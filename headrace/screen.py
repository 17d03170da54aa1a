"""The demo's screen: one live page on a terminal, plain lines elsewhere."""

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

from headrace.board import STAGES, Board

PLAIN_EVERY_S = 5.0
WHAT = {
    "ingest": "actions not read yet",
    "sequence": "examples not delivered yet",
    "train": "examples not learned yet",
    "publish": "learned, not published yet",
    "serve": "published, not served yet",
}


class Screen(Protocol):
    """Shows a board while its block lasts."""

    def show(self) -> None:
        """Draw what the board says now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_screen(board: Board, *, plain: bool) -> Screen:
    """A live page where there is a terminal to draw on."""
    return PlainScreen(board) if plain or not sys.stdout.isatty() else LiveScreen(board)


class PlainScreen:
    """One line every five seconds."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._shown_s = 0.0

    def show(self) -> None:
        """A line, if the last one is old enough."""
        if time.monotonic() - self._shown_s >= PLAIN_EVERY_S:
            self._shown_s = time.monotonic()
            print(plain_line(self.board), flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LiveScreen:
    """The page."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._live = Live(page(board), console=Console(), auto_refresh=False, transient=False)

    def show(self) -> None:
        """Draw it anew."""
        self._live.update(page(self.board), refresh=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


def plain_line(board: Board) -> str:
    """The board in one line."""
    return (
        f"{board.elapsed_s:5.0f} s  {board.phase}  sent {board.num_sent:,} of {board.num_actions:,}  "
        f"trained {board.num_trained:,}  lag: {lags(board)}  HR@10 {number(board.hr10())} (popular "
        f"{number(board.hr10('popular_unseen'))})  NE {number(board.entropy())}  version {board.version}  "
        f"fresh {seconds(board.freshness_now_s)}"
    )


def page(board: Board) -> Panel:
    """The board on one page."""
    where = f"   page: {board.page}" if board.page else ""
    told = f"   {board.dataset} through {board.broker}   {board.elapsed_s:.0f} s{where}"
    head = Text.assemble((board.phase, "bold"), told)
    bars = Table.grid(padding=(0, 1))
    bars.add_column(width=8)
    bars.add_column(width=40)
    bars.add_column()
    total = max(board.num_actions, 1)
    for name, num in (("sent", board.num_sent), ("trained", board.num_trained)):
        rate = f"{board.rate:,.0f} actions/s" if name == "sent" else _rate(board)
        bars.add_row(
            name, ProgressBar(total=total, completed=min(num, total), width=40), f"{num:,} of {total:,}   {rate}"
        )
    return Panel(
        Group(head, Text(), bars, Text(), tables(board)), title="headrace", border_style="cyan", padding=(1, 2)
    )


def _rate(board: Board) -> str:
    per_s = board.lag.get("throughput", {}).get("interactions_per_s")
    return f"{per_s:,.0f} interactions/s" if per_s is not None else ""


def tables(board: Board) -> Columns:
    """Both tables; beside each other where there is room."""
    return Columns([stage_table(board), quality_table(board)], padding=(0, 4))


def stage_table(board: Board) -> Table:
    """How far each stage is behind."""
    table = Table(title="lag by stage", title_justify="left", box=None, padding=(0, 1))
    table.add_column("stage")
    table.add_column("records", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("", style="dim", no_wrap=True)
    for name in STAGES:
        stage = board.stage(name)
        table.add_row(name, _count(stage.get("lag_records")), seconds(stage.get("lag_s")), WHAT[name])
    return table


def quality_table(board: Board) -> Table:
    """How well the newest weights predicted what came next, before they learned it."""
    table = Table(title="before learning it", title_justify="left", box=None, padding=(0, 1))
    for name in ("", "so far", "lately", "popular"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("HR@10", number(board.hr10()), number(board.hr10(window=True)), number(board.hr10("popular_unseen")))
    table.add_row(
        "NE", number(board.entropy()), number(board.entropy(window=True)), number(board.entropy(baseline=True))
    )
    table.add_row("loss", number(board.lag.get("loss", {}).get("total")), "", "")
    table.add_row("version", board.version, "", "")
    table.add_row("fresh", seconds(board.freshness_now_s), "", "")
    return table


def number(value: Any) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def _count(value: Any) -> str:
    return "–" if value is None else f"{value:,}"


def seconds(value: Any) -> str:
    """Seconds with a tenth, or a dash."""
    return "–" if value is None else f"{value:.1f} s"


def lags(board: Board) -> str:
    """How many records wait at each stage."""
    return " ".join(f"{name} {_count(board.stage(name).get('lag_records'))}" for name in STAGES)
