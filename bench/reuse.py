"""What cached keys and values of earlier versions are worth: how far answers are from exact ones, by their age.

A learner passes over the simulated live world in steps of 32, and its weights come into service at fixed intervals.
Just before users act, recommendations for them are computed exactly, with states computed under the version 1, 2, 4 …
before, and, for comparison, by the whole version before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.single_pass import settings_for
from bench.streams.named import world
from bench.timing import Row, row
from headrace.config import Settings
from headrace.file_source import FileSource
from serving.answering.engine import Engine
from serving.answering.request import Request, Result
from serving.answering.reuse import ReuseProbe
from serving.users.histories import Histories
from serving.versions.manager import HeldVersion, WeightsManager
from trainer.checkpoint.snapshot import weights_snapshot
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from wire.example import Example
from wire.example_codec import encode_example
from wire.weights import Manifest, Version

AGES, SIZES, STEP = (1, 2, 4, 8), (500, 2000), 32
MOST_ASKED, K = 24, 10
FIRST = 10_000
"""How many interactions pass before any answer is compared."""


class Always(ReuseProbe):
    """Allows entries of any age, and measures nothing."""

    def __init__(self) -> None:
        super().__init__(10**9, float("inf"))

    @property
    def allowed(self) -> int:
        """Any."""
        return self.max_versions

    def wants(self) -> bool:
        """Never."""
        return False


@dataclass
class Compared:
    """The results at one age: the largest difference of scores of each answer, and the share of items that differ."""

    errors: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def note(self, exact: Result, reused: Result) -> None:
        """Compare two answers to one request."""
        _, mine, theirs = np.intersect1d(exact.items, reused.items, return_indices=True)
        self.errors.append(float(np.abs(exact.scores[mine] - reused.scores[theirs]).max(initial=0.0)))
        self.others.append(1 - len(mine) / max(1, len(exact.items)))


def run(quick: bool) -> list[Row]:
    """The rows of the report."""
    rows = []
    for size in SIZES:
        for age, seen in measure(size, 30_000 if quick else 100_000).items():
            states = f"states {age} version{'s' * (age > 1)} old" if age else "the version before, whole"
            note = (f"median {np.median(seen.errors):.3f}, p95 {np.quantile(seen.errors, 0.95):.3f}, largest "
                    f"{max(seen.errors):.2f} of scores; {len(seen.errors)} answers")  # fmt: skip
            rows.append(row(f"{size:,} interactions per version, {states}", 100 * float(np.mean(seen.others)),
                            "% other items", note=note))  # fmt: skip
    return rows


def measure(size: int, num: int) -> dict[int, Compared]:
    """Age (0: the whole version before) → the results over the first ``num`` actions."""
    actions = list(itertools.islice(world(), num))
    settings = settings_for(Settings(), actions)
    model, sequence = settings.model, settings.sequence
    learner = Learner(model, TrainerConfig(device="cpu"))
    parts = _parts(FileSource(iter(actions), settings.action, sequence, STEP), size)
    kept, manager = Histories(10**9, sequence.max_context), WeightsManager()
    found = {age: Compared() for age in (0, *AGES)}
    engines = {age: Engine(kept, reuse=Always()) for age in AGES}
    exact, coming, told = Engine(kept, cache_bytes=0), _versions(learner, model.as_dict()), list[list[Example]]()
    ahead = list(itertools.islice(parts, max(AGES) + 1))
    while ahead:
        if learner.num_interactions > FIRST:
            before = manager.current
            manager.stage(next(coming))
            manager.swap()
            _compare(manager.current, before, kept, engines, exact, ahead, found)
        for step in ahead.pop(0):
            learner.step(step)
            told.append(step)
            for example in step:
                kept.feed(0, encode_example(example))
        ahead += itertools.islice(parts, 1)
    return found


def _parts(source: FileSource, size: int) -> Iterator[list[list[Example]]]:
    part = list[list[Example]]()
    while step := source.poll(0.0):
        part.append(step)
        if len(part) * STEP >= size:
            yield part
            part = []


def _versions(learner: Learner, model: dict[str, Any]) -> Iterator[Version]:
    for number in itertools.count():
        manifest = Manifest(
            model_id="bench", epoch=1, number=number, kind="delta" if number else "base", onto_number=number - 1,
            base_number=0, base_offset=0, num_chunks=1, num_bytes=0, checksum="", covered={}, covered_offsets={},
            newest_event_ms=0, newest_record_ms=0, num_interactions=0, plan=[], model_config=model, created_ms=0,
            metrics={},
        )  # fmt: skip
        yield Version(manifest, weights_snapshot(learner, everything=number == 0))


def _next(part: list[list[Example]]) -> dict[str, Example]:
    """Users who act in a part, each with the example of the first action."""
    found: dict[str, Example] = {}
    for example in itertools.chain.from_iterable(part):
        if example.num_new and len(found) < MOST_ASKED:
            found.setdefault(example.user, example)
    return found


def _compare(
    held: HeldVersion | None, before: HeldVersion | None, kept: Histories, engines: dict[int, Engine], exact: Engine,
    ahead: list[list[list[Example]]], found: dict[int, Compared],
) -> None:  # fmt: skip
    assert held is not None
    coming = _next(ahead[0])
    requests = {
        user: request for user, example in coming.items() if (request := _request_for(kept, user, example)) is not None
    }
    wanted = dict(zip(requests, exact.answer(held, list(requests.values())), strict=True))
    if before is not None:  # its tables are still as they were: the next version is not staged yet
        for user, got in zip(requests, exact.answer(before, list(requests.values())), strict=True):
            found[0].note(wanted[user], got)
    for age, engine in engines.items():
        known = [user for user in requests if (entry := engine.cache.get(user)) and entry.born.age(held.born) == age]
        for user, got in zip(
            known, engine.answer(held, [requests[user] for user in known]) if known else [], strict=True
        ):
            found[age].note(wanted[user], got)
        for user in coming:
            engine.cache.drop(user)
        if len(ahead) > age:  # states for those who act this many versions later
            later = [
                _request_for(kept, user, each) for user, each in _next(ahead[age]).items() if not engine.cache.get(user)
            ]
            engine.answer(held, [each for each in later if each is not None])


def _request_for(kept: Histories, user: str, example: Example) -> Request | None:
    past = kept.get(user)
    if past is None:
        return None
    moment = int(example.interactions.timestamp_ms[-example.num_new])
    return Request(user, past.interactions, past.user_features, moment, k=K)
