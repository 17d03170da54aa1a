"""Repeats the published training: the same examples in the same steps; then compares the weights bit by bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import structlog
from kafka import TopicPartition

from model.config import ModelConfig
from trainer.checkpoint.plan import Plan
from trainer.checkpoint.recorded import difference
from trainer.checkpoint.snapshot import weights_snapshot
from trainer.config import TrainerConfig
from trainer.device import choose_device
from trainer.errors import JournalError, SourceError
from trainer.learner.step import Learner
from trainer.set_aside import pass_over
from trainer.sources.kafka import KafkaSource
from trainer.sources.scheduler import Scheduler, num_in
from trainer.versions.rounding import rounded
from trainer.versions.weights import Table, Weights, newest_weights
from wire.config import KafkaConfig
from wire.control import Which
from wire.kafka.consumer import make_consumer, partitions_of, read_from
from wire.kafka.retry import patiently
from wire.shape import Shape
from wire.topics import Topics
from wire.weights import Manifest

log = structlog.get_logger("trainer")


def published_weights(records: Iterator[Any], wanted: Which | None = None) -> tuple[Weights, list[Manifest]]:
    """All records of the weights topic → the newest weights that a reader can reach, or those of a version, and the
    valid manifests up to it."""
    weights, manifests = newest_weights(records, wanted)
    if weights is None:
        raise SourceError("weights topic: expected a base version to compare with, got none; is a trainer publishing?")
    if wanted is not None and weights.manifest.which != wanted:
        epoch, number = wanted
        raise SourceError(
            f"weights topic: expected version {epoch}/{number} and the base that it builds on, got none (any more); "
            "`headrace versions` lists what is there"
        )
    return weights, manifests


def plan_of(weights: Weights, manifests: list[Manifest]) -> Plan:
    """Every step of these weights' lineage, from the first. Raises `JournalError` if the topic has lost some."""
    lineage = weights.manifest.lineage
    plan = Plan(0)
    for manifest in (each for each in manifests if each.lineage == lineage):
        if manifest.first_step > plan.next_step:
            raise JournalError(
                f"weights topic: steps {plan.next_step} to {manifest.first_step - 1} of this line of training are "
                "gone (retention); a replay needs all of them"
            )
        plan.merge(manifest.first_step, manifest.plan, set_aside=manifest.set_aside)
    return plan


def differences(published: Weights, learner: Learner) -> list[str]:
    """Names of the arrays that are not bit-equal between published weights and a learner's, rounded like them."""
    ours = weights_snapshot(learner, everything=True)
    if published.manifest.rounding:
        ours = rounded(ours)
    wrong = [name for name, array in ours.dense.items() if not same_bits(array, published.dense.get(name))]
    for name, rows in ours.tables.items():
        expected, table = published.tables[name], Table.of(rows)
        live = np.flatnonzero(table.live)
        if not np.array_equal(live, np.flatnonzero(expected.live)) or not np.array_equal(
            table.ids[live], expected.ids[live]
        ):
            wrong.append(f"{name}.ids")
        elif not same_bits(table.rows[live], expected.rows[live]):
            wrong.append(f"{name}.rows")
    theirs = {"memory": published.memory.changes(everything=True), "rates": published.rates.changes(everything=True)}
    for part, arrays in (("memory", ours.memory), ("rates", ours.rates)):
        wrong += [f"{part}.{name}" for name, array in arrays.items() if not same_bits(array, theirs[part].get(name))]
    return wrong


def same_bits(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any] | None) -> bool:
    """Equal bit by bit."""
    return theirs is not None and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


def replay(
    model: ModelConfig, config: TrainerConfig, kafka: KafkaConfig, stop: threading.Event, wanted: Which | None = None,
    *, shape: Shape | None = None,
) -> int:  # fmt: skip
    """Repeat the training up to a published version (None: the newest); exit status 0 if its weights are bit-equal.

    ``shape``: of the examples, as the trainer expected them.
    """
    reader = patiently(lambda: make_consumer(kafka), "reading versions", kafka, stop)
    where = TopicPartition(Topics.under(kafka.prefix, kafka.line).weights, 0)
    partitions_of(reader, where.topic)
    first = reader.beginning_offsets([where])[where]
    weights, manifests = published_weights(read_from(reader, where, first), wanted)
    reader.close()
    published = weights.manifest
    _check_settings(model, config, published)
    plan = plan_of(weights, manifests)
    learner = Learner(model, config, choose_device(config))
    source = KafkaSource.open(
        kafka, {}, on_gap=config.on_gap, max_buffered=config.max_buffered_examples, stop=stop, shape=shape
    )
    try:
        _follow(learner, source, plan, published.next_step, stop)
    finally:
        source.close()
    wrong = differences(weights, learner)
    version = f"version {published.epoch}/{published.number}"
    name = f"{version}, {published.next_step} steps, {learner.num_interactions} interactions"
    print(f"{name}: {'bit-equal' if not wrong else 'DIFFERENT: ' + ', '.join(wrong)}", flush=True)
    return 1 if wrong else 0


def _follow(learner: Learner, source: KafkaSource, plan: Plan, num_steps: int, stop: threading.Event) -> None:
    config = learner.config
    source.max_buffered = max([source.max_buffered, *map(num_in, plan.steps)])
    scheduler = Scheduler(learner.max_context, config.max_step_tokens, config.max_step_targets)
    for number, step in enumerate(plan.steps[:num_steps]):
        while (examples := scheduler.replay_batch(step)) is None:
            if stop.is_set():
                raise SourceError("replay: stopped by a signal before its end")
            scheduler.add(source.poll(0.5))
        if number in plan.set_aside:
            pass_over(learner, examples)
        else:
            learner.step(examples)
        source.trained(step)


def _check_settings(model: ModelConfig, config: TrainerConfig, published: Manifest) -> None:
    found = difference(model, config, published.model_config, published.learning)
    if found is not None:
        name, theirs, ours = found
        raise SourceError(
            f"{name}: the published weights were trained with {theirs!r}, the configuration says {ours!r}; a replay "
            "needs the same"
        )
