"""What a trainer process does from start to end: train on the stream, or replay the topics."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import structlog

from model.config import ModelConfig
from trainer.config import TrainerConfig
from trainer.device import choose_device
from trainer.errors import ReporterError
from trainer.examples.context import can_thin
from trainer.lag.reporter import LagReporter
from trainer.loop import Trainer
from trainer.ranks.agreement import join_ranks
from trainer.ranks.messages import Ranks
from trainer.ranks.replica import Replica
from trainer.sources.kafka import KafkaSource
from trainer.sources.positions import check_ends, sequences_identity
from trainer.sources.source import Position
from trainer.versions.publisher import Publisher
from wire.config import ActionConfig, KafkaConfig, SequenceConfig
from wire.control import Which
from wire.kafka.retry import StoppedError, connect_patiently
from wire.shape import shape_of

log = structlog.get_logger("trainer")
COLLECT_AFTER = (50_000, 20, 20)
"""Arguments of `gc.set_threshold`."""
SWITCH_INTERVAL_S = 0.0005
"""How long another thread may hold the interpreter while the training thread waits for it (Python's default: 5 ms). A
step gives it up at each call of torch: beside the assembling of a base it waited 28 to 112 times in the slowest turns.
"""


class Settings(Protocol):
    """The sections of the configuration that a trainer reads."""

    action: ActionConfig
    sequence: SequenceConfig
    kafka: KafkaConfig
    model: ModelConfig
    trainer: TrainerConfig


def stop_on_signals() -> threading.Event:
    """An event set by SIGTERM and SIGINT: the trainer then ends its step, saves and publishes the rest, and exits 0."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def tune_interpreter() -> None:
    """Have the garbage collector ignore everything that exists by now, and run less often for the rest; let no other
    thread hold the interpreter for long (`SWITCH_INTERVAL_S`); and have numpy ask for no huge pages.

    torch alone is half a million objects that live as long as the process; traversing them took a tenth of a small
    step's time. numpy wants huge pages for every array of 4 MB. To find them for a version's arrays, the system moved
    other pages, also those that a step was using: beside a base of a million items the slowest took 130 to 270 ms of
    processor time. (Tables and the memory, which stay, have theirs: `model.growing`.)
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    multiarray: Any = import_module("numpy._core.multiarray")
    multiarray._set_madvise_hugepage(False)  # noqa: SLF001  (NUMPY_MADVISE_HUGEPAGE, which is read at the first import)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def train_stream(
    settings: Settings, *, take_over: bool = False, from_published: bool = False, despite_added: bool = False
) -> int:
    """Train on ``headrace.sequences.v1`` until a signal. Returns the exit status."""
    config, kafka = settings.trainer, settings.kafka
    alpha, kept = config.stochastic_length_alpha, settings.model.max_context
    if alpha and not can_thin(min(config.max_train_context or kept, kept), kept, alpha):
        log.warning(
            "trainer.stochastic_length_alpha thins nothing: contexts of trainer.max_train_context are short enough; "
            "raise that (0: sequence.max_context), or leave it out",
            stochastic_length_alpha=alpha, max_train_context=config.max_train_context,
        )  # fmt: skip
    if Ranks.expected() > 1:
        _end_by_signals()
    ranks = join_ranks(settings.model, config)
    if ranks is not None and ranks.rank > 0:
        return run_replica(ranks, config)
    stop = stop_on_signals()

    def open_source(positions: dict[int, Position]) -> KafkaSource:
        check_ends(kafka, positions, config.on_gap, stop)
        return KafkaSource.open(
            kafka, positions, on_gap=config.on_gap, max_buffered=config.max_buffered_examples, stop=stop,
            shape=shape_of(settings.action, settings.sequence, kafka.partitions), despite_added=despite_added,
        )  # fmt: skip

    trainer = Trainer(
        settings.model,
        config,
        open_source,
        checkpoint_dir=Path(config.checkpoint_dir),
        publisher=Publisher(kafka, config, threading.Event()),
        stop=stop,
        identity=lambda: sequences_identity(kafka, stop),
        take_over=take_over,
        from_published=from_published,
        ranks=ranks,
    )
    reporter = LagReporter(kafka, config, lambda: trainer.progress, on_failure=stop.set)
    reporter.start()
    tune_interpreter()
    try:
        connect_patiently(kafka, stop).close()
        trainer.run()
    except StoppedError:
        if reporter.failure is None:
            log.info("stopped while it waited for the broker")
            return 0
    finally:
        reporter.stop()
        if ranks is not None:
            ranks.close()
    if reporter.failure is not None:
        raise ReporterError(f"the reporter of lag and heartbeats has failed: {reporter.failure}") from reporter.failure
    log.info("stopped", step=trainer.learner.num_steps, interactions=trainer.learner.num_interactions)
    return 0


def _end_by_signals() -> None:
    """Let Ctrl-C and SIGTERM end the process at once: while it waits for other ranks, in compiled code, no handler in
    Python is called."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def run_replica(ranks: Ranks, config: TrainerConfig) -> int:
    """Compute what rank 0 gives this rank, until rank 0 ends. Returns the exit status.

    Signals are for rank 0: torchrun sends them to all ranks, but the step that rank 0 has begun must be completed.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    device = choose_device(config)
    log.info("computing for rank 0", rank=ranks.rank, num_ranks=ranks.size)
    tune_interpreter()
    try:
        Replica(ranks, device).run()
    finally:
        ranks.close()
    log.info("stopped", rank=ranks.rank)
    return 0


def replay_topics(settings: Settings, version: Which | None = None) -> int:
    """Train on the sequences topic again by the published steps, and compare the weights with the published ones: those
    of ``version``, or the newest."""
    from trainer.replay import replay

    shape = shape_of(settings.action, settings.sequence, settings.kafka.partitions)
    return replay(settings.model, settings.trainer, settings.kafka, stop_on_signals(), version, shape=shape)
