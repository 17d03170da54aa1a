"""`headrace top`: what the topics say is on the screen, whole, at eighty columns."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import subprocess
import sys
import time
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text
from textual.widgets import Static

from headrace.top import Top, processes, served_of, stages
from serving.pulse import Pulse
from tests.brokers import REPOSITORY
from wire.status import PartitionStatus, ServerStatus, WorkerStatus, encode_status


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def fed() -> Pulse:
    pulse, now = Pulse(10.0), now_ms()
    pulse.note_lag(lag(now))
    pulse.note_status(encode_status(WorkerStatus(component="w", time_ms=now, partitions={0: PartitionStatus()})))
    for name, behind in (("s1", 0), ("s2", 3)):
        pulse.note_status(
            encode_status(
                ServerStatus(component=name, time_ms=now, epoch=2, number=9 - behind, newest_record_ms=now - 1500)
            )
        )
    pulse.note_status(encode_status(ServerStatus(component="gone", time_ms=now - 60_000, epoch=1, number=1)))
    pulse.note_letter([("reason", b"future")])
    for _ in range(2):  # once is not a bottleneck
        pulse.sample(served_of(pulse), now)
    return pulse


def lag(now: int) -> bytes:
    import msgspec

    behind: dict[str, Any] = {"lag_records": 0, "lag_s": 0.0}
    told = dict.fromkeys(("ingest", "sequence", "publish", "serve"), behind)
    told["train"] = {"lag_records": 12_345, "lag_s": 7.5}
    metrics = {
        "retrieval_window": {"model": {"hr10": 0.2183}, "popular_unseen": {"hr10": 0.0741}},
        "frozen": {
            "newest_record_ms": now - 60_000, "num_interactions": 1_234_567, "fresh": {"hr10": 0.2201},
            "frozen": {"hr10": 0.1987},
        },
    }  # fmt: skip
    return msgspec.json.encode(
        {
            "time_ms": now,
            "stages": told,
            "metrics": metrics,
            "num_items": 1682,
            "num_interactions": 99,
            "throughput": {"interactions_per_s": 1.0},
        }
    )


def shown(renderable: Any) -> str:
    screen = io.StringIO()
    Console(width=80, file=screen).print(renderable)
    return screen.getvalue()


def test_the_furthest_behind_of_the_live_servers_counts() -> None:
    assert (served_of(fed()).epoch, served_of(fed()).number) == (2, 6)
    assert served_of(Pulse(10.0)).epoch == -1
    assert served_of(fed(), "deep").epoch == -1, "no server follows that line"


def test_the_bottleneck_stands_out_and_silence_is_shown() -> None:
    pulse = fed()
    table = shown(stages(pulse.points[-1]))
    assert "12,345" in table
    assert pulse.points[-1].bottleneck == "train"
    assert "gone silent for 60 s" in processes(pulse).plain
    assert "s1 silent" not in processes(pulse).plain
    assert max(map(len, table.splitlines())) <= 80


def test_partitions_that_no_server_holds_are_shown() -> None:
    pulse, now = fed(), now_ms()
    assert pulse.points[-1].unheld == "", "servers of an earlier build hold all"
    pulse = Pulse(10.0)
    held = ServerStatus(component="s", time_ms=now, epoch=2, number=9, partitions="1/2", num_partitions=4)
    pulse.note_status(encode_status(held))
    point = pulse.sample(served_of(pulse), now)
    assert point.unheld == "1,3"
    assert "no server holds the users of partitions 1,3" in processes(pulse, point.unheld).plain


def test_a_narrow_terminal_has_the_numbers_whole() -> None:
    with io.StringIO() as out:
        Console(file=out, width=38).print(stages(fed().points[-1], is_narrow=True))
        text = out.getvalue()
    assert "…" not in text
    assert "12,345" in text
    assert len(text.splitlines()) == 6


@pytest.mark.parametrize("has_input", [True, False])
def test_without_a_terminal_it_ends_with_one_line_instead_of_drawing_for_ever(has_input: bool) -> None:
    command = [sys.executable, "-m", "headrace", "top", "--bootstrap", "127.0.0.1:1"]
    near, far = pty.openpty()
    done = subprocess.run(
        command, stdin=far if has_input else subprocess.DEVNULL, cwd=REPOSITORY, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    for each in (near, far):
        os.close(each)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "expected a terminal for input and output" in line
    assert "headrace lag" in line


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (40, 12)])
def test_the_screen_shows_what_is_known(size: tuple[int, int]) -> None:
    async def look() -> dict[str, str]:
        app = Top(fed(), "a-broker-with-a-long-name.example.org:9092,another.example.org:9092")
        async with app.run_test(size=size) as pilot:
            app.redraw()
            await pilot.pause()
            found = {}
            for name in ("head", "stages", "quality", "processes"):
                content = app.query_one(f"#{name}", Static).content
                found[name] = content.plain if isinstance(content, Text) else shown(content)
            assert app.query_one("#head").size.height == 1
            await pilot.press("p")
            await pilot.press("q")
        return found

    found = asyncio.run(look())
    assert found["head"].startswith("● fresh")
    assert "version 2/6" in found["head"]
    assert "model 0.2183" in found["quality"]
    assert "1 future" in found["quality"]
    assert "train" in found["stages"]
    assert "worker w" in found["processes"]
