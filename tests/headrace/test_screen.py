"""What people see: the lag page and its plain line, and how they fit a terminal."""

import time
from typing import Any

import msgspec
import pytest
from rich.console import Console

from headrace.lag import plain
from headrace.lag_view import STAGES, LagView, decode_lag
from headrace.screen import page


def message() -> dict[str, Any]:
    stage = {"lag_records": 3, "lag_s": 0.5, "partitions": {}}
    return {
        "time_ms": 0, "stages": dict.fromkeys(STAGES, stage), "throughput": {"interactions_per_s": 12.0},
        "num_interactions": 4000, "num_servers": 1, "version": {"epoch": 0, "number": 5},
        "freshness": {"now_s": 2.25},
    }  # fmt: skip


@pytest.mark.parametrize("width", [80, 130])
def test_nothing_on_the_page_is_cut_or_wrapped(width: int) -> None:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(page(LagView(dataset="MovieLens", broker="localhost:9092", lag=message())))
    shown = capture.get()
    for words in ("actions not read yet", "examples not delivered yet", "published, not served yet", "popular"):
        assert words in shown
    assert "…" not in shown


def test_without_a_terminal_a_message_is_one_line() -> None:
    line = plain(msgspec.json.encode(message()).decode())
    assert line == (
        "00:00:00  lag: ingest 3 sequence 3 train 3 publish 3 serve 3  12 interactions/s learned, 4,000 in all; "
        "servers: 1  version 0/5  fresh 2.2 s"
    )


@pytest.mark.parametrize("value", [None, b"", b"7 bytes", b"{}", b"[]", b"\xff", b'{"time_ms": 1}', b'"x"', b"5"])
def test_what_is_no_message_of_the_lag_topic_is_passed_over(value: bytes | None) -> None:
    assert decode_lag(value) is None
    assert decode_lag(msgspec.json.encode(message())) == message()


def test_the_plain_line_names_dead_letters_where_there_are_any() -> None:
    assert "dead letters" not in plain(msgspec.json.encode(message()).decode())
    told = {**message(), "num_dead_letters": 1007}
    assert "; 1,007 dead letters (headrace dead-letters)" in plain(msgspec.json.encode(told).decode())


def test_the_rate_is_that_of_sending_and_not_of_what_was_sent() -> None:
    view = LagView()
    view.sent_at.extend([(time.monotonic() - 11.0, 0), (time.monotonic() - 10.0, 500)])
    assert view.rate == 0.0
    view.note_sent(600)
    assert view.rate > 0.0
