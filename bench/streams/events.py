"""A stream as all recommenders in a comparison see it: steps of events, in one order, each with what came before it.

The actions go through Headrace's own sequencer, scheduler and histories. So the events to predict, their contexts and
the excluded items are the same for all models. Rows number the items in the order of their first event: the items known
before an event are rows 1 to ``num_known``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.config import Settings
from headrace.file_source import FileSource
from headrace.file_training import file_configs
from kernels.memory import MemoryEvents, MemoryRules
from kernels.memory.arrays import FEW_REPEATS, PRIOR_CHOICES
from model.config import ModelConfig
from model.memory_events import events_of
from trainer.examples.batch import JaggedBatch, build_batch
from trainer.metrics.prequential import rank_among
from trainer.sources.scheduler import Scheduler
from wire.example import Lesson
from wire.history import Histories

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step's E events, in order, and the users' sequences around them.

    ``batch``: the sequences of B users, n interactions, R targets (`trainer.examples.batch`). ``user_B`` (B,): numbers
    of the users. ``row_n`` (n,): rows of the interactions' items. ``told_E``: event e is about target ``told_E[e]``.
    ``events``: its row, whether it is a choice, the rows chosen and met before it. ``num_known_E``: how many rows were
    known before it. ``leaves_out_E``: whether items that the user has met do not compete.
    """

    batch: JaggedBatch
    user_B: Int64
    row_n: Int64
    told_E: Int64
    events: MemoryEvents
    num_known_E: Int64
    leaves_out_E: Bools

    @property
    def asked(self) -> Int64:
        """(A,) the events that are choices, which are the ones to predict."""
        return np.flatnonzero(self.events.chosen_R == 1)

    @property
    def num_known(self) -> int:
        """Rows known after the step."""
        return int(max(self.num_known_E.max(initial=0), self.events.target_R.max(initial=0)))

    def past(self, e: int) -> NDArray[np.int32]:
        """Rows that the user of event ``e`` had chosen, oldest first."""
        return self.events.past_rows[self.events.past_begin_R[e] : self.events.past_end_R[e]]

    def met(self, e: int) -> NDArray[np.int32]:
        """Rows that the user of event ``e`` had met, oldest first."""
        return self.events.met_rows[self.events.met_begin_R[e] : self.events.met_end_R[e]]


@dataclass(slots=True, eq=False)
class Catalogue:
    """Rows by item, and whether the stream has repeats, by `kernels.memory`'s rule."""

    row_of: dict[int, int] = field(default_factory=dict)
    repeats: float = 0.0
    choices: float = 0.0
    decay: float = 0.5 ** (1.0 / MemoryRules().repeat_half_life)

    def rows(self, item_n: Int64) -> Int64:
        """(n,) rows of items that were met."""
        return np.array([self.row_of[item] for item in item_n.tolist()], np.int64)

    def admit(self, item: int) -> int:
        """The item's row, a new one if necessary, and how many were known before."""
        num = len(self.row_of)
        self.row_of.setdefault(item, num + 1)
        return num

    @property
    def leaves_out(self) -> bool:
        """Whether hardly any choices so far were repeats."""
        return self.repeats < FEW_REPEATS * (self.choices + PRIOR_CHOICES)

    def note(self, *, is_repeat: bool) -> None:
        """Count one more choice of a known item."""
        self.repeats = self.repeats * self.decay + is_repeat
        self.choices = self.choices * self.decay + 1.0


def steps(settings: Settings, actions: Iterable[dict[str, Any]], size: int | None = None) -> Iterator[Step]:
    """The stream in steps of ``size`` targets; None: exactly Headrace's steps."""
    stream = iter(actions)
    first = next(stream)
    model = file_configs(settings, first)[2]
    histories, catalogue, number_of = Histories(model.max_context), Catalogue(), dict[str, int]()
    for examples in arrivals(settings, itertools.chain([first], stream), size):
        batch = build_batch(examples, histories, model)
        if batch.num_targets:
            users = dict.fromkeys(example.user for example in examples if example.num_new or example.num_feedback)
            user_B = np.array([number_of.setdefault(user, len(number_of)) for user in users], np.int64)
            yield _step(batch, user_B, catalogue, model)


def arrivals(settings: Settings, actions: Iterable[dict[str, Any]], size: int | None = None) -> Iterator[list[Lesson]]:
    """The examples of each step, as the trainer would take them from a file."""
    stream = iter(actions)
    first = next(stream)
    action, sequence, model = file_configs(settings, first)
    config, budget = settings.trainer, 1 << 40
    if size is None:
        size, budget = config.max_step_targets, config.max_step_tokens
    take = config.file_take if size == config.max_step_targets else size
    source = FileSource(itertools.chain([first], stream), action, sequence, take)
    context = min(config.max_train_context or model.max_context, model.max_context)
    scheduler = Scheduler(context, budget, size)
    while True:
        while scheduler.num_targets < size and not source.exhausted:
            scheduler.add(source.poll(0.0))
        if (ready := scheduler.next_batch()) is None:
            return
        plan, examples = ready
        source.trained(plan)
        yield examples


def _step(batch: JaggedBatch, user_B: Int64, catalogue: Catalogue, model: ModelConfig) -> Step:
    told = np.flatnonzero(batch.is_new_R | batch.is_wanted_R)
    told = told[np.argsort(batch.time_ms_n[batch.target_R[told]], kind="stable")]
    where_E, is_chosen_E = batch.target_R[told], batch.is_wanted_R[told]
    num_known_E = np.array([catalogue.admit(item) for item in batch.item_n[where_E].tolist()], np.int64)
    row_n = catalogue.rows(batch.item_n)
    events = events_of(
        row_n, batch.bits_n, batch.time_ms_n, batch.starts_B1, batch.owner_n[where_E], where_E,
        batch.time_ms_n[where_E], model, is_chosen_R=is_chosen_E,
    )  # fmt: skip
    step = Step(batch, user_B, row_n, told, events, num_known_E, np.zeros(len(told), np.bool_))
    for e in np.flatnonzero(is_chosen_E & (events.target_R <= num_known_E)).tolist():
        step.leaves_out_E[e] = catalogue.leaves_out
        catalogue.note(is_repeat=bool((step.met(e) == events.target_R[e]).any()))
    return step


def ranks(step: Step, score_AV: NDArray[Any]) -> Int64:
    """(A,) the rank of each choice of a step, 1 is best, 0 for an item that was not known or is left out; ties count
    half, rounded up.

    ``score_AV`` (A, at least 1 + rows known before): a score of each row; row 0 is no item's.
    """
    found = np.zeros(len(step.asked), np.int64)
    for a, e in enumerate(step.asked.tolist()):
        row, num = int(step.events.target_R[e]), int(step.num_known_E[e])
        left_out = step.met(e) if step.leaves_out_E[e] else step.met(e)[:0]
        if row <= num and row not in left_out:
            found[a] = rank_among(score_AV[a, : num + 1], row, left_out)
    return found


def num_items(actions: Iterable[dict[str, Any]]) -> int:
    """How many items a stream has, for the size of tables."""
    return len({str(action["item"]) for action in actions})
