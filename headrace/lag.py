"""`headrace lag`: the trainer-lag topic as a live table, or line by line."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from kafka import KafkaConsumer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from headrace.config import Settings
from headrace.lag_view import LagView
from headrace.lines import followed
from headrace.screen import lags, seconds, tables
from headrace.sentences import say
from wire.kafka.consumer import connect, follow
from wire.lag import STALE_S, aged, decode_lag
from wire.topics import Topics

SILENT_AFTER_S = 10.0
"""A process, or the trainer itself, that says nothing for this long is reported as silent."""
FIRST_WORD_S = 3.0
"""How long to wait for the first message."""


def watch(
    settings: Settings,
    *,
    line: str | None = None,
    as_json: bool = False,
    once: bool = False,
    max_s: float | None = None,
) -> int:
    """Show each message of a line of training (`headrace.lines.followed`) as it arrives until Ctrl-C; with ``once``,
    the newest one only, or 1 if there is none. With ``max_s``, 1 as soon as anything is further behind than that
    (`excess`)."""
    view = LagView(broker=settings.kafka.bootstrap, publish_every_s=settings.trainer.publish_every_s)
    try:
        with contextlib.closing(connect(settings.kafka)) as consumer, followed(settings, line) as which:
            arriving = _messages(consumer, settings.kafka.prefix, which, view)
            _show(_until_late(arriving, once=once, max_s=max_s), view, as_json=as_json, once=once)
        return 0
    except TooLate as error:
        say(f"headrace lag: {error}", is_error=True)
        return 1


def _messages(consumer: KafkaConsumer, prefix: str, which: Callable[[], str], view: LagView) -> Iterator[Any]:
    """The lag messages of the line that is shown, which may become another one; None while there is none."""
    while True:
        view.line = which()
        for record in follow(consumer, Topics.under(prefix, view.line).lag):
            yield record
            if which() != view.line:
                break


def _show(messages: Iterable[dict[str, Any] | None], view: LagView, *, as_json: bool, once: bool) -> None:
    if as_json or not sys.stdout.isatty():
        _lines(messages, view, as_json=as_json)
    else:
        _table(messages, view, once=once)


class TooLate(Exception):
    """Something is further behind than allowed, or nobody has ever said how far."""


def _until_late(messages: Iterable[Any], *, once: bool, max_s: float | None) -> Iterator[dict[str, Any] | None]:
    """Messages as they arrive, None while none does. Raises `TooLate` after the one that is."""
    newest: dict[str, Any] | None = None
    started_s = time.monotonic()
    for record in messages:
        message = decode_lag(record.value) if record is not None else None
        newest = message or newest
        yield message
        waited_s = time.monotonic() - started_s
        if newest is None and (once or max_s is not None) and waited_s > max(max_s or 0, FIRST_WORD_S):
            raise TooLate("expected a message, got none; start a trainer (headrace train)")
        if newest is not None and max_s is not None and (late := excess(newest, time.time(), max_s)):
            raise TooLate(late)
        if once and message is not None:
            return


def excess(message: dict[str, Any], now_s: float, max_s: float) -> str:
    """Which stages are more than ``max_s`` behind, as far as a message tells, or whether it is itself that old; empty
    if neither."""
    age_s = now_s - message["time_ms"] / 1000
    found = {name: stage["lag_s"] for name, stage in aged(message, now_s)["stages"].items()}
    late = [f"{name} {behind_s:,.1f} s" for name, behind_s in found.items() if behind_s > max_s]
    late += [f"the newest message {age_s:,.1f} s old"] * (age_s > max(max_s, STALE_S))
    return f"expected at most {max_s:g} s, got {', '.join(late)}" if late else ""


def _lines(messages: Iterable[dict[str, Any] | None], view: LagView, *, as_json: bool) -> None:
    """Each message on a line; while none comes, the last one again every `SILENT_AFTER_S`, with its present ages."""
    told_s = time.monotonic()
    for number, message in enumerate(messages):
        if message is None and number == 0:
            say(f"headrace lag: waiting for a trainer to report on {view.broker}", is_error=True)
        view.lag = message or view.lag
        is_silent = bool(view.lag) and not as_json and time.monotonic() - told_s > SILENT_AFTER_S
        if message is not None or is_silent:
            told_s = time.monotonic()
            print(msgspec.json.encode(message).decode() if as_json else plain(view, time.time()), flush=True)


def _table(messages: Iterable[dict[str, Any] | None], view: LagView, *, once: bool) -> None:
    console = Console()
    if once:
        for message in messages:
            if message is not None:
                view.lag = message
                console.print(_page(view))
        return
    with Live(_page(view), console=console, auto_refresh=False) as live:
        for message in messages:
            view.lag = message or view.lag
            live.update(_page(view), refresh=True)


def plain(view: LagView, now_s: float) -> str:
    """The view's message on one line, marked if it is old."""
    view = replace(view, lag=aged(view.lag, now_s))
    sent_s = view.lag["time_ms"] / 1000
    when = datetime.fromtimestamp(sent_s, UTC).strftime("%H:%M:%S")
    old = f" OLD ({now_s - sent_s:,.0f} s)" if now_s - sent_s > SILENT_AFTER_S else ""
    fresh = seconds(view.freshness_now_s)
    line = f" of line {view.line}" if view.line else ""
    return f"{when}{old}  lag: {lags(view)}  {_below(view)}  version {view.version}{line}  fresh {fresh}"


def _below(view: LagView) -> str:
    per_s, lag = view.lag["throughput"]["interactions_per_s"], view.lag
    words = (_first_version(view), _pace(lag["throughput"]), _refused(lag), *_missing(lag), *_processes(lag))
    more = "".join(f"; {each}" for each in words if each)
    learned = f"{per_s:,.0f} interactions/s learned, {view.num_trained:,} in all"
    return f"{learned}; servers: {lag['num_servers']}{more}"


def _first_version(view: LagView) -> str:
    """When the first version is due, while there is none."""
    if view.lag.get("version") or view.lag.get("epoch", -1) < 0:
        return ""
    within = f"{view.publish_every_s:g} s"
    if not view.lag.get("num_steps"):
        return f"no version yet: the first is due within {within} of the first step, which needs examples"
    return f"no version of this trainer yet: the first is due within {within}"


def _refused(lag: dict[str, Any]) -> str:
    """Dead letters by reason, or only their number if the workers' stores are newer than they are."""
    reasons = ", ".join(f"{reason} {num:,}" for reason, num in (lag.get("dead_letters") or {}).items())
    num = lag.get("num_dead_letters", 0)
    words = reasons or (f"{num:,}" if num else "")
    return f"dead letters: {words} (headrace dead-letters)" if words else ""


def _pace(rates: dict[str, Any]) -> str:
    """Whether the trainer keeps up with the examples that arrive."""
    if "catch_up_s" not in rates or rates["catch_up_s"] == 0:
        return ""
    learned, arriving = rates["examples_per_s"], rates["arriving_examples_per_s"]
    pace = f"{learned:,.0f} examples/s learned, {arriving:,.0f}/s arrive"
    left = rates["catch_up_s"]
    return f"{pace}: falling behind" if left is None else f"{pace}: caught up in {left:,.0f} s"


def _missing(lag: dict[str, Any]) -> list[str]:
    """What was lost before it was read."""
    words_of = {
        "num_gone": "action records lost unread (kafka.actions_retention_s)",
        "num_lost": "examples lost unread (kafka.min_compaction_lag_s)",
    }
    return [f"{lag[name]:,} {words}" for name, words in words_of.items() if lag.get(name)]


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
    sent_ms = view.lag.get("time_ms")
    if sent_ms is None:
        return Group(Text(f"waiting for a trainer to report on {view.broker} (headrace train)"))
    age_s = time.time() - sent_ms / 1000
    view = replace(view, lag=aged(view.lag, time.time()))
    line = f", line {view.line}" if view.line else ""
    head = Text.assemble(("headrace lag", "bold"), f" on {view.broker}{line}")
    if age_s > SILENT_AFTER_S:
        head.append(f"   the trainer has been silent for {age_s:.0f} s", style="red")
    return Group(head, Text(), tables(view), Text(), Text(_below(view)))
