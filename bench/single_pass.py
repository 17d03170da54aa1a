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

from bench.judging import LATELY, Progress, ranking
from headrace.config import Settings
from headrace.file_source import FileSource
from headrace.file_training import file_configs
from kernels.memory import MemoryEvents, MemoryOutcome
from stream.files import RATING_KINDS
from trainer.loop import Trainer
from trainer.recall import Recall
from trainer.step import Learner

ANY_NUMBER = 1 << 40
OURS = ("Headrace", "its network alone", "its counts alone")


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """``ranks``: of every choice, by each ranker of `OURS`; ``item_A``, ``num_past_A``: each choice's item (hash), and
    how many choices of its user were known before it. Choices are in the order in which they are learned, which among
    actions of one time is not that of the stream. ``ranking``: see `bench.judging.ranking`."""

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
) -> Pass:
    """Train on the stream as `headrace train --file` does. ``limit`` may change which items compete for each event;
    every choice is then compared with all of them, however many there are."""
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
    if limit is not None:
        learner.recall = Recall(learner.memory, learner.items, learner.model, exact_rows=ANY_NUMBER)
    outcomes, learn = list[MemoryOutcome](), learner.memory.learn
    items, pasts = list[NDArray[np.int64]](), list[NDArray[np.int64]]()

    def recorded(events: MemoryEvents, logit_AV: NDArray[np.float32]) -> MemoryOutcome:
        asked_R = events.chosen_R == 1
        items.append(learner.items.keys_of(events.target_R[asked_R].astype(np.int64)))
        pasts.append((events.past_end_R - events.past_begin_R)[asked_R])
        outcomes.append(learn(events if limit is None else limit(learner, events), logit_AV))
        progress(learner.num_interactions)
        return outcomes[-1]

    learner.memory.learn = recorded  # type: ignore[method-assign]
    started = time.monotonic()
    trainer.run()
    seconds = time.monotonic() - started
    done = MemoryOutcome.join(outcomes)
    asked = done.rank_R >= 0
    columns = (done.rank_R, done.model_rank_R, done.count_rank_R)
    return Pass(
        {who: column[asked].astype(np.int64) for who, column in zip(OURS, columns, strict=True)},
        np.concatenate(items),
        np.concatenate(pasts),
        ranking(learner.metrics),
        learner.num_interactions / seconds,
        trainer,
    )


def with_size(settings: Settings, size: int) -> Settings:
    """The same with another number of targets per step."""
    trainer = dataclasses.replace(settings.trainer, max_step_targets=size, file_take=size)
    return settings.model_copy(update={"trainer": trainer})


def settings_for(settings: Settings, actions: list[dict[str, Any]]) -> Settings:
    """The configuration with the kinds and features of a stream; a file's interactions are complete on arrival."""
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
