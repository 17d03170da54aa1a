"""The whole loop on live traffic: how soon an action is seen and learned, what it costs, and which rate is too high.

Real Apache Kafka; one worker, trainer and server with default settings; and a simulated world's live traffic, all on
this machine. A rate is held for minutes while probes are timed (`bench.live_probe`); then it is raised until something
falls behind. ``--quick`` holds the first rate for half a minute and does not raise it; ``--part hold`` and
``--part rise`` do one of the two. ``--picture FILE`` draws the hold, ``--folder PATH`` keeps all logs.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.live_probe import Probe, Prober, percentiles
from bench.live_stack import OBSERVER, START_TIMEOUT_S, Backlog, Stack, running
from bench.options import parser_of
from bench.output.live_picture import draw_timeline, timeline
from bench.output.report import machine, report
from bench.timing import Row, row

QUICK_S, HOLD_S, STEP_S, WARM_S = 30.0, 600.0, 60.0, 8.0
RISE, MOST_RISES = 1.5, 6
PARTS = ("hold", "rise")
MEASURING = ("traffic", OBSERVER)
"""Processes that a deployment does not have."""
GROWS = 0.02
"""A stage falls behind when its backlog grows by more than this share of the rate."""


@dataclass(slots=True)
class Held:
    """What was measured while a rate was held."""

    rate: float
    seconds: float
    probes: list[Probe]
    backlogs: list[Backlog]
    cpu_s: dict[str, float]
    topic_bytes: dict[str, int]
    num_actions: int
    ended_s: float
    num_asked: int
    """Requests that the server answered meanwhile, all of them the observer's."""

    def slope(self, stage: str) -> float:
        """How fast a stage's backlog grew over the second half, in records per second."""
        half = self.backlogs[len(self.backlogs) // 2 :]
        times = np.array([each.time_s for each in half])
        waiting = np.array([getattr(each, stage) for each in half], np.float64)
        return float(np.polyfit(times - times[0], waiting, 1)[0]) if len(set(times.tolist())) > 1 else 0.0

    @property
    def behind(self) -> list[str]:
        """Stages that fall behind; ``traffic`` if even the sender does not keep the rate."""
        stages = [stage for stage in ("actions", "outbox", "train") if self.slope(stage) > GROWS * self.rate]
        return stages if stages or self.actions_per_s > self.rate * (1 - 2 * GROWS) else ["traffic"]

    @property
    def actions_per_s(self) -> float:
        """Applied by the workers."""
        return self.num_actions / self.seconds


def hold(stack: Stack, rate: float, seconds: float, probe_every_s: float = 0.25) -> Held:
    """Send at this rate for this long, after a warm-up."""
    stack.send(rate)
    _wait(stack, WARM_S)
    began_s, cpu, volume, num = time.monotonic(), stack.cpu_s(), stack.topic_bytes(), stack.num_actions()
    backlogs = []
    with Prober(stack, probe_every_s) as prober:
        while time.monotonic() < began_s + seconds:
            _wait(stack, 1.0)
            backlog = stack.backlog(time.monotonic())
            backlogs += [backlog] if backlog else []
        took_s = time.monotonic() - began_s
        after, end_volume, num_after = stack.cpu_s(), stack.topic_bytes(), stack.num_actions()
        asked, num_asked = list(prober.probes), prober.num_asked
        deadline = time.monotonic() + 6.0
        while time.monotonic() < deadline and any(each.learned_s is None for each in asked):
            _wait(stack, 0.2)
    if prober.failure is not None:
        raise prober.failure
    return Held(
        rate, took_s, asked, backlogs,
        {name: after[name] - cpu[name] for name in after}, {name: end_volume[name] - volume[name] for name in volume},
        num_after - num, time.monotonic(), num_asked,
    )  # fmt: skip


def _wait(stack: Stack, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stack.group.check()
        time.sleep(min(0.1, seconds))


def rows_of(held: Held, num_interactions: int) -> list[Row]:
    """The report of one held rate."""
    name = f"{held.rate:,.0f} actions/s"
    rows = []
    for what, field, targets in (
        ("event to served history", "in_history_s", {"p50": 0.3, "p99": 1.0}),
        ("event to an answer by weights that learned it", "learned_s", {"p50": 1.5, "p99": 4.0}),
    ):
        for q, value in percentiles(held.probes, field, held.ended_s).items():
            rows.append(row(f"{name}: {what}, {q}", value, "s", targets.get(q), most=True))
    rows.append(row(f"{name}: sent and applied", held.actions_per_s, "actions/s", held.rate * (1 - GROWS)))
    learned = held.backlogs[-1].num_interactions - held.backlogs[0].num_interactions if held.backlogs else 0
    rows.append(row(f"{name}: learned", learned / held.seconds, "interactions/s"))
    for stage in ("actions", "outbox", "train"):
        note = f"{getattr(held.backlogs[-1], stage):,} waiting at the end" if held.backlogs else ""
        rows.append(
            row(f"{name}: backlog of {stage}", held.slope(stage), "records/s", GROWS * held.rate, note, most=True)
        )
    for process, seconds in sorted(held.cpu_s.items()):
        note = f"{held.num_actions / seconds:,.0f} actions per processor second" if seconds > 0 else ""
        if process in ("server", OBSERVER):
            note += f"; {held.num_asked / held.seconds:.0f} requests/s of the observer answered"
        rows.append(row(f"{name}: {process}", seconds / held.seconds, "cores", note=note))
    for topic, num_bytes in held.topic_bytes.items():
        per = num_bytes / max(1, held.num_actions)
        rows.append(row(f"{name}: {topic} on the broker", per, "MB per million actions"))
    per = held.topic_bytes["sequences"] / max(1, num_interactions or learned)
    rows.append(row(f"{name}: sequences", per, "bytes per interaction", 300.0, most=True))
    return rows


def measure(
    quick: bool,
    rate: float,
    seconds: float | None,
    sections: dict[str, dict[str, Any]],
    parts: tuple[str, ...] = PARTS,
    folder: Path | None = None,
) -> tuple[list[Row], list[dict[str, float]]]:
    """Hold ``rate``, then raise it by half until something falls behind; or do one of the two ``parts``.

    Returns the rows, and the hold's `timeline`. ``folder``: a new folder for all files, which is kept.
    """
    with tempfile.TemporaryDirectory() as name, running(folder or Path(name), sections) as stack:
        began_s = time.monotonic()
        stack.send(rate)
        stack.group.wait_until(lambda: _answers(stack), START_TIMEOUT_S, "a first version to be served")
        rows = [row("from the start of all processes to the first answer", time.monotonic() - began_s, "s")]
        if quick or "hold" in parts:
            held = hold(stack, rate, seconds or (QUICK_S if quick else HOLD_S))
            rows += rows_of(held, 0)
            points = timeline(held.probes, held.ended_s)
            if held.behind:
                return [*rows, _saturation(0.0, held)], points
            if quick or "rise" not in parts:
                return rows, points
            return rows + rise(stack, rate * RISE, sustained=rate), points
        return rows + rise(stack, rate, sustained=0.0), []


def rise(stack: Stack, rate: float, sustained: float) -> list[Row]:
    """A minute at each rate, each half as high again as the last, until something falls behind; and where that was."""
    rows = list[Row]()
    for _ in range(MOST_RISES):
        held = hold(stack, rate, STEP_S, probe_every_s=1.0)
        rows += rows_of(held, 0)
        print(f"{rate:,.0f} actions/s: {', '.join(held.behind) or 'nothing'} behind", flush=True)
        if held.behind:
            break
        sustained, rate = rate, rate * RISE
    return [*rows, _saturation(sustained, held)]


def _saturation(sustained: float, held: Held) -> Row:
    cores = {process: seconds / held.seconds for process, seconds in held.cpu_s.items()}
    busiest = max((name for name in cores if name not in MEASURING), key=lambda name: cores[name])
    measuring = " and ".join(f"{name} {cores[name]:.2f}" for name in MEASURING if name in cores)
    what = f"behind in {', '.join(held.behind)}" if held.behind else "nothing behind yet"
    note = (
        f"at {held.rate:,.0f}: {what}; busiest: {busiest}, {cores[busiest]:.2f} cores; "
        f"all of them {sum(cores.values()):.2f}, of which {measuring} measure"
    )
    return row("sustained without a growing backlog", sustained, "actions/s", 1000.0, note)


def _answers(stack: Stack) -> bool:
    import httpx

    try:
        asked = httpx.post(f"{stack.url}/recommend", json={"user": "nobody", "k": 1}, timeout=2, trust_env=False)
        return asked.status_code == 200
    except httpx.HTTPError:
        return False


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("live", __doc__)
    parser.add_argument("--rate", type=float, default=1000.0, help="actions/s; default: 1000")
    parser.add_argument("--seconds", type=float, help="how long the first rate is held")
    parser.add_argument("--part", choices=PARTS, help="default: both, which takes a quarter of an hour")
    parser.add_argument("--picture", type=Path, help="write an SVG of the hold")
    parser.add_argument("--folder", type=Path, help="a new folder for logs and data, which stays")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="not the default")
    options = parser.parse_args(arguments)
    sections: dict[str, dict[str, Any]] = {}
    for each in options.set:
        path, _, value = each.partition("=")
        section, _, key = path.partition(".")
        sections.setdefault(section, {})[key] = json.loads(value)
    parts = (options.part,) if options.part else PARTS
    if options.folder is not None:
        options.folder.mkdir(parents=True)
    rows, points = measure(options.quick, options.rate, options.seconds, sections, parts, options.folder)
    if options.picture is not None:
        options.picture.write_text(draw_timeline(points, options.rate, machine()), encoding="utf-8")
    return report("live", arguments, rows, options.out, settings=options.set, timeline=points)
