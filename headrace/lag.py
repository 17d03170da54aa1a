"""`headrace lag`: the trainer-lag topic as a live table, or line by line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from headrace.config import Settings
from headrace.lag_view import LagView, decode_lag
from headrace.screen import lags, seconds, tables
from wire.kafka.consumer import connect, follow
from wire.topics import Topics

SILENT_AFTER_S = 10.0


def watch(settings: Settings, *, as_json: bool = False, once: bool = False) -> int:
    """Show each message as it arrives until Ctrl-C; with ``once``, the newest one only."""
    consumer = connect(settings.kafka)
    topic = Topics.under(settings.kafka.prefix).lag
    try:
        messages = follow(consumer, topic)
        if as_json or not sys.stdout.isatty():
            return _lines(messages, once, str if as_json else plain)
        return _table(messages, settings.kafka.bootstrap, once)
    finally:
        consumer.close()


def _lines(messages: Any, once: bool, words: Callable[[str], str]) -> int:
    for record in messages:
        if record is not None and decode_lag(record.value) is not None:
            print(words(record.value.decode()), flush=True)
            if once:
                return 0
    return 0


def _table(messages: Any, bootstrap: str, once: bool) -> int:
    view = LagView(broker=bootstrap)
    console = Console()
    if once:
        for record in messages:
            if record is not None and (message := decode_lag(record.value)) is not None:
                view.lag = message
                console.print(_page(view))
                return 0
    with Live(_page(view), console=console, auto_refresh=False) as live:
        for record in messages:
            if record is not None:
                view.lag = decode_lag(record.value) or view.lag
            live.update(_page(view), refresh=True)
    return 0


def plain(message: str) -> str:
    """A message of the topic, on one line."""
    view = LagView(lag=msgspec.json.decode(message))
    when = datetime.fromtimestamp(view.lag["time_ms"] / 1000, UTC).strftime("%H:%M:%S")
    return f"{when}  lag: {lags(view)}  {_below(view)}  version {view.version}  fresh {seconds(view.freshness_now_s)}"


def _below(view: LagView) -> str:
    per_s, lag = view.lag["throughput"]["interactions_per_s"], view.lag
    more = "".join(f"; {words}" for words in (_pace(lag["throughput"]), *_missing(lag), *_processes(lag)) if words)
    learned = f"{per_s:,.0f} interactions/s learned, {view.num_trained:,} in all"
    return f"{learned}; servers: {lag['num_servers']}{more}"


def _pace(rates: dict[str, Any]) -> str:
    """Whether the trainer keeps up with the examples that arrive."""
    if "catch_up_s" not in rates or rates["catch_up_s"] == 0:
        return ""
    learned, arriving = rates["examples_per_s"], rates["arriving_examples_per_s"]
    pace = f"{learned:,.0f} examples/s learned, {arriving:,.0f}/s arrive"
    left = rates["catch_up_s"]
    return f"{pace}: falling behind" if left is None else f"{pace}: caught up in {left:,.0f} s"


def _missing(lag: dict[str, Any]) -> list[str]:
    """What was refused, and what was gone before anybody read it."""
    told = {
        "num_dead_letters": "dead letters (headrace dead-letters)",
        "num_gone": "action records gone unread (kafka.actions_retention_s)",
        "num_lost": "examples gone unread (kafka.min_compaction_lag_s)",
    }
    return [f"{lag[name]:,} {words}" for name, words in told.items() if lag.get(name)]


def _processes(lag: dict[str, Any]) -> list[str]:
    """Standbys, and processes that have gone silent."""
    found = lag.get("processes", [])
    standbys = sum(each["role"] == "standby" and each["silent_s"] <= SILENT_AFTER_S for each in found)
    silent = [
        f"{each['role']} {each['component']} silent for {each['silent_s']:,.0f} s"
        for each in found
        if each["silent_s"] > SILENT_AFTER_S
    ]
    return [*([f"standbys: {standbys}"] if standbys else []), *silent]


def _page(view: LagView) -> Group:
    told_ms = view.lag.get("time_ms")
    if told_ms is None:
        return Group(Text(f"waiting for a trainer to report on {view.broker} (headrace train)"))
    age_s = time.time() - told_ms / 1000
    head = Text.assemble(("headrace lag", "bold"), f" on {view.broker}")
    if age_s > SILENT_AFTER_S:
        head.append(f"   the trainer has been silent for {age_s:.0f} s", style="red")
    return Group(head, Text(), tables(view), Text(), Text(_below(view)))
