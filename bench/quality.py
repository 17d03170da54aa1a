"""Headrace and every rival on a stream: HR@10 of choices, NE of kinds, in one pass.

All of them (`bench.rivals`) on the same events in the same order; each choice and each kind is predicted before it is
learned. The metric code is the same for all: HR@10, NDCG@10 and MRR of the choices, over all items seen so far (without
those that the user has met, if the stream has no repeats), and NE of every kind; over everything, and over the last
10,000.

Each rival is run in every setting with the first seed, and in its best setting with all seeds. ``--out FILE`` appends
each pass as it ends, and passes that FILE has already are not run again: a long comparison can be made in pieces,
stopped and resumed. ``--from FILE`` shows the contents of such files. ``--steps`` runs Headrace alone, by targets per
step.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bench.evaluation import evaluate_ranker, evaluate_retriever, retrieval
from bench.options import add_stream, parser_of, quiet
from bench.output.chart import draw
from bench.output.comparison import rows_of
from bench.output.records import Record, append, best_setting, key, measure, read, spoken
from bench.output.report import commit, machine, report
from bench.rivals import Setting, StreamInfo, rankers, retrievers
from bench.single_pass import headrace, settings_for, with_size
from bench.streams.events import num_items, steps
from bench.streams.named import STREAMS, open_stream
from headrace.config import Settings, load_settings
from headrace.file_training import file_configs
from stream.files import read_actions

STEPS = (16, 32, 64, 128, 256)
QUICK_ACTIONS = 6_000
FIRST_SEED = 1
HEADRACE = "Headrace"


@dataclass(frozen=True, slots=True)
class Job:
    """One pass over a stream. ``setting`` None: Headrace, in steps of ``size``."""

    task: str
    who: str
    name: str
    seed: int
    setting: Setting | None = None
    size: int = 0


@dataclass(slots=True, eq=False)
class Comparison:
    """One stream, and the passes that have been made over it."""

    stream: str
    actions: list[dict[str, Any]]
    settings: Settings
    records: list[Record]
    out: Path | None
    words: str

    def has(self, job: Job) -> bool:
        """Whether this pass has been made."""
        wanted = (self.stream, len(self.actions), job.task, job.who, job.name, job.seed)
        return any(key(record) == wanted for record in self.records)

    def run(self, job: Job) -> None:
        """Make a pass, unless it has been made."""
        if self.has(job):
            return
        say = Line(f"{self.stream}: {job.who}{', ' + job.name if job.name else ''}, seed {job.seed}", len(self.actions))
        started = time.monotonic()
        made = self._headrace(job, say) if job.setting is None else self._rival(job, job.setting, say)
        seconds = time.monotonic() - started
        for record in made:
            record |= {"seconds": round(seconds, 1), "command": self.words, "commit": commit(), "machine": machine()}
            self.records.append(record)
            append(self.out, record)
        say.end(", ".join(f"{record['task']} {measure(record):.4f}" for record in made[:2]) + f", {seconds:.0f} s")

    def _record(self, job: Job, task: str, who: str, found: dict[str, Any]) -> Record:
        return {"stream": self.stream, "num_actions": len(self.actions), "task": task, "who": who,
                "setting": job.name, "seed": job.seed, **found}  # fmt: skip

    def _headrace(self, job: Job, say: Callable[[int], None]) -> list[Record]:
        done = headrace(with_size(self.settings, job.size), self.actions, job.seed, say)
        speed = {"interactions_per_s": round(done.interactions_per_s, 1)}
        made = [
            self._record(job, "retrieval", who, retrieval(ranks) | (speed if who == HEADRACE else {}))
            for who, ranks in done.ranks.items()
        ]
        return [made[0], self._record(job, "ranking", HEADRACE, done.ranking), *made[1:]]

    def _rival(self, job: Job, setting: Setting, say: Callable[[int], None]) -> list[Record]:
        model = file_configs(self.settings, self.actions[0])[2]
        rival = setting.make(StreamInfo(num_items(self.actions), model), job.seed)
        stream = steps(self.settings, self.actions, setting.size)
        if job.task == "retrieval":
            found = retrieval(evaluate_retriever(rival, stream, say))
        else:
            found = evaluate_ranker(rival, stream, model.kinds, say)
        return [self._record(job, job.task, job.who, found)]

    def compare(self, only: list[str], num_seeds: int, *, first_settings: bool) -> None:
        """Headrace with every seed; each rival in every setting with the first seed, and in the best one with all."""
        seeds = range(FIRST_SEED, FIRST_SEED + num_seeds)
        if not only or HEADRACE in only:
            for seed in seeds:
                self.run(self.headrace_job(self.settings.trainer.max_step_targets, seed))
        for task, rivals in (("retrieval", retrievers()), ("ranking", rankers())):
            for who, ways in rivals.items():
                if not only or who in only:
                    tried = dict(islice(ways.items(), 1)) if first_settings else ways
                    self._compare_rival(task, who, tried, list(seeds))

    def _compare_rival(self, task: str, who: str, ways: dict[str, Setting], seeds: list[int]) -> None:
        for name, setting in ways.items():
            self.run(Job(task, who, name, seeds[0], setting))
        mine = [record for record in self.records if self._is_of(record, task, who) and record["setting"] in ways]
        best = best_setting(mine)
        for seed in seeds[1:] if ways[best].is_seeded else ():
            self.run(Job(task, who, best, seed, ways[best]))

    def _is_of(self, record: Record, task: str, who: str) -> bool:
        wanted = (self.stream, len(self.actions), task, who)
        return (record["stream"], record["num_actions"], record["task"], record["who"]) == wanted

    @staticmethod
    def headrace_job(size: int, seed: int) -> Job:
        """Headrace at this many targets per step."""
        return Job("retrieval", HEADRACE, f"{size} a step", seed, size=size)

    def frontier(self, num_seeds: int) -> None:
        """Headrace by targets per step."""
        for size in STEPS:
            for seed in range(FIRST_SEED, FIRST_SEED + num_seeds):
                self.run(self.headrace_job(size, seed))


class Line:
    """A progress line on stderr."""

    def __init__(self, what: str, num: int) -> None:
        self._what, self._num, self._shown_s = what, num, time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        """Show the number done: every second on a terminal, every half minute in a file."""
        if time.monotonic() - self._shown_s >= (1.0 if self._is_terminal else 30.0):
            self._shown_s = time.monotonic()
            end = "\r" if self._is_terminal else "\n"
            print(f"{self._what}: {done / max(1, self._num):.0%}", end=end, file=sys.stderr, flush=True)

    def end(self, result: str) -> None:
        """Show the result of a pass."""
        print(f"{self._what}: {result}", file=sys.stderr, flush=True)


def command(arguments: list[str]) -> int:
    """The options of this measurement, and its report."""
    parser = parser_of("quality", __doc__)
    add_stream(parser, None)
    parser.add_argument("--file", action="append", default=[], type=Path, help="a file of actions or ratings")
    parser.add_argument("--only", action="append", default=[], help="run this recommender alone; may be repeated")
    parser.add_argument("--steps", action="store_true", help="the frontier of step sizes")
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--share", type=float, metavar="S", help="use only the first share S of the actions")
    parser.add_argument("--first-settings", action="store_true", help="each rival in its usual setting alone")
    parser.add_argument("--from", action="append", default=[], type=Path, dest="sources",
                        help="show the passes in this file, and run nothing")  # fmt: skip
    parser.add_argument("--picture", type=Path, help="write an SVG")
    options = parser.parse_args(arguments)
    _check(parser, options)
    quiet()
    records = read(options.sources) if options.sources else _measure(options, spoken("quality", arguments))
    if options.streams and options.sources:
        records = [record for record in records if record["stream"] in options.streams]
    rows = rows_of(records, frontier=options.steps)
    if options.picture:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        options.picture.write_text(draw(records), encoding="utf-8")
    return report("quality", arguments, rows)


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    unknown = sorted(set(options.streams) - set(STREAMS))
    if unknown and not options.sources:
        parser.error(f"streams: expected some of {', '.join(STREAMS)}, got {', '.join(unknown)}; or give --file")
    known = (HEADRACE, *retrievers(), *rankers())
    strange = sorted(set(options.only) - set(known))
    if strange:
        parser.error(f"--only: expected some of {', '.join(known)}, got {', '.join(strange)}")
    if options.share is not None and not 0 < options.share <= 1:
        parser.error(f"--share: expected more than 0, at most 1, got {options.share}")
    for name in ("seeds", "limit"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(options, name)}")


def _measure(options: argparse.Namespace, words: str) -> list[Record]:
    kept = read([options.out]) if options.out else []
    records: list[Record] = []
    for name, actions in _streams(options):
        settings = settings_for(load_settings(), actions)
        comparison = Comparison(name, actions, settings, kept, options.out, words)
        if options.steps:
            comparison.frontier(options.seeds)
        else:
            comparison.compare(options.only, options.seeds, first_settings=options.first_settings or options.quick)
        records += [
            each for each in comparison.records if (each["stream"], each["num_actions"]) == (name, len(actions))
        ]
    return records


def _streams(options: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    limit = options.limit or (QUICK_ACTIONS if options.quick else None)
    free = [name for name, stream in STREAMS.items() if not stream.needs]
    names = options.streams or ([] if options.file else free[:1] if options.quick else free)
    opened = [(name, open_stream(name, options.data)) for name in names]
    opened += [(path.stem, read_actions(path)) for path in options.file]
    for name, stream in opened:
        actions = list(islice(stream, limit))
        yield name, actions[: round(options.share * len(actions))] if options.share else actions
