"""One pass of Headrace over a stream, in this process, with the rank of every choice."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.evaluation import LATELY, Progress, ranking
from headrace.config import Settings
from headrace.file_source import FileSource
from headrace.file_training import file_configs
from kernels.memory import MemoryEvents, MemoryOutcome, memory_logits
from kernels.memory.reference import rank
from model.memory import Memory
from stream.files import RATING_KINDS
from trainer.learner.memory_pass import MemoryPass
from trainer.learner.step import Learner
from trainer.loop import Trainer
from trainer.network.choice_weights import ChoiceWeights

ANY_NUMBER = 1 << 40
OURS = ("Headrace", "its network alone", "its counts alone")
OUT = -1e29
"""Rows that do not compete score below this."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """The results of a pass. ``ranks``: of every choice, by each ranker of `OURS` (but not by counts alone, if some
    choices are learned from a sample of the rows); ``item_A``, ``num_past_A``: each choice's item (hash), and how many
    choices of its user were known before it. Choices are in the order in which they are learned, which among actions at
    the same time is not that of the stream. ``ranking``: see `bench.evaluation.ranking`."""

    ranks: dict[str, NDArray[np.int64]]
    item_A: NDArray[np.int64]
    num_past_A: NDArray[np.int64]
    ranking: dict[str, Any]
    interactions_per_s: float
    trainer: Trainer


def headrace(
    settings: Settings,
    actions: Iterable[dict[str, Any]],
    seed: int,
    progress: Progress = lambda _: None,
    limit: Callable[[Learner, MemoryEvents], MemoryEvents] | None = None,
    prepare: Callable[[Learner], None] = lambda _: None,
) -> Pass:
    """Train on the stream as `headrace train --file` does. ``limit`` may change which items compete for each event;
    every choice is then compared with all of them, however many there are. ``prepare`` may change the new learner."""
    stream = iter(actions)
    first = next(stream)
    action, sequence, model = file_configs(settings, first)
    config = dataclasses.replace(settings.trainer, seed=seed, metric_window=LATELY)
    whole = itertools.chain([first], stream)
    trainer = Trainer(
        model,
        config,
        lambda positions: FileSource(whole, action, sequence, config.file_take, positions),
        checkpoint_dir=None,
    )
    learner = trainer.learner
    prepare(learner)
    if limit is not None:
        learner.memory_pass = MemoryPass(
            learner.memory,
            learner.items,
            learner.model,
            exact_rows=ANY_NUMBER,
            weights=ChoiceWeights.of(model, config),
        )
    outcomes, learn = list[MemoryOutcome](), learner.memory.learn
    items, pasts = list[NDArray[np.int64]](), list[NDArray[np.int64]]()

    def note(events: MemoryEvents) -> None:
        asked_R = events.chosen_R == 1
        items.append(learner.items.keys_of(events.target_R[asked_R].astype(np.int64)))
        pasts.append((events.past_end_R - events.past_begin_R)[asked_R])
        progress(learner.num_interactions)

    def recorded(events: MemoryEvents, logit_AV: NDArray[np.float32]) -> MemoryOutcome:
        outcomes.append(learn(events if limit is None else limit(learner, events), logit_AV))
        note(events)
        return outcomes[-1]

    sampled = RankedFirst(learner.memory)

    def recorded_sampled(
        events: MemoryEvents, query_AD: NDArray[np.float32], table_VD: NDArray[np.float32], unit_width: int
    ) -> MemoryOutcome:
        outcomes.append(sampled.learn(events, query_AD, table_VD, unit_width))
        note(events)
        return dataclasses.replace(outcomes[-1], rank_R=np.full(len(events), -1, np.int32))

    learner.memory.learn, learner.memory.learn_sampled = recorded, recorded_sampled  # type: ignore[method-assign]
    started = time.monotonic()
    trainer.run()
    seconds = time.monotonic() - started - sampled.ranking_s
    done = MemoryOutcome.join(outcomes)
    asked = done.rank_R >= 0
    columns = zip(OURS, (done.rank_R, done.model_rank_R, done.count_rank_R), strict=True)
    ranks = {who: column[asked].astype(np.int64) for who, column in columns}
    return Pass(
        {who: column for who, column in ranks.items() if (column >= 0).all()},
        np.concatenate(items),
        np.concatenate(pasts),
        ranking(learner.metrics),
        learner.num_interactions / seconds,
        trainer,
    )


class RankedFirst:
    """Learns choices from a sample of the rows, as a memory does, but ranks each of them among all rows before. What is
    learned stays the same; it is learned one event at a time, which takes a little longer.

    ``ranking_s``: how long the ranking has taken.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory, self._learn, self.ranking_s = memory, memory.learn_sampled, 0.0

    def learn(
        self, events: MemoryEvents, query_AD: NDArray[np.float32], table_VD: NDArray[np.float32], unit_width: int
    ) -> MemoryOutcome:
        """As `model.memory.Memory.learn_sampled`, with the ranks by the whole score and by the network alone."""
        started = time.monotonic()
        logit_AV = memory_logits(query_AD, table_VD, self._memory.num_rows, unit_width)
        self.ranking_s += time.monotonic() - started
        outcomes, place = list[MemoryOutcome](), 0
        for r in range(len(events)):
            one, asked = events[r : r + 1], slice(place, place + int(events.chosen_R[r] == 1))
            place = asked.stop
            ranks = self._ranks(one, logit_AV[asked])
            outcome = self._learn(one, query_AD[asked], table_VD, unit_width)
            if ranks is not None:
                rank_R, model_rank_R = (np.array([each], np.int32) for each in ranks)
                outcome = dataclasses.replace(outcome, rank_R=rank_R, model_rank_R=model_rank_R)
            outcomes.append(outcome)
        return MemoryOutcome.join(outcomes)

    def _ranks(self, event: MemoryEvents, logit_AV: NDArray[np.float32]) -> tuple[int, int] | None:
        """By the whole score and by the network alone; 0 for an item that was not known or is left out, None without a
        choice."""
        if not len(logit_AV):
            return None
        memory, target = self._memory, int(event.target_R[0])
        if memory.arrays.first[target] < 0 or (memory.leaves_out and event.is_repeat_R[0]):
            return 0, 0
        started = time.monotonic()
        met = event.met_rows[event.met_begin_R[0] : event.met_end_R[0]]
        met = met if memory.leaves_out else met[:0]
        one, ends = dataclasses.replace(event, met_rows=met), np.array([0, len(met)], np.int64)
        one = dataclasses.replace(one, met_begin_R=ends[:1], met_end_R=ends[1:])
        score_AV = logit_AV.copy()
        memory.score(one, score_AV)
        competes_V = score_AV[0] > OUT
        ranks = rank(score_AV[0], competes_V, target), rank(logit_AV[0], competes_V, target)
        self.ranking_s += time.monotonic() - started
        return ranks


def with_size(settings: Settings, size: int) -> Settings:
    """The same with another number of targets per step."""
    trainer = dataclasses.replace(settings.trainer, max_step_targets=size, file_take=size)
    return settings.model_copy(update={"trainer": trainer})


def settings_for(settings: Settings, actions: list[dict[str, Any]]) -> Settings:
    """The configuration with the kinds and features of a stream. A file's interactions are complete on arrival."""
    kinds, features = dict[str, None](), dict[str, None]()
    for action in actions:
        met = action["action"]
        kinds.update(dict.fromkeys([met] if isinstance(met, str) else met))
        features.update(dict.fromkeys(action.get("features", ())))
    is_known = set(kinds) <= set(settings.action.kinds) or set(kinds) <= set(RATING_KINDS)
    if is_known and not features:
        return settings
    names = settings.action.kinds if is_known else tuple(kinds)
    sequence = settings.sequence if is_known else dataclasses.replace(settings.sequence, join_window_s=0.0)
    return settings.model_copy(
        update={
            "action": dataclasses.replace(settings.action, kinds=names, features=tuple(features)),
            "sequence": sequence,
            "model": dataclasses.replace(settings.model, kinds=names, num_features=len(features)),
        }
    )
