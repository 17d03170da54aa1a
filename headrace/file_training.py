"""Train on a file of actions or ratings, without Kafka: the same sequencer, the same trainer, one process."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import structlog
from xxhash import xxh3_64_hexdigest

from headrace.file_source import FileSource
from model.config import ModelConfig
from stream.errors import FileError
from stream.files import RATING_KINDS, read_actions
from trainer.config import TrainerConfig
from trainer.loop import Trainer
from trainer.process import Settings, run_replica, stop_on_signals
from trainer.ranks.agreement import join_ranks
from trainer.sources.source import Position
from wire.action import Rejection
from wire.config import MAX_KINDS, ActionConfig, SequenceConfig

log = structlog.get_logger("trainer")
FINGERPRINT_BYTES = 1 << 20


def train_file(settings: Settings, path: Path, *, keep: bool, as_json: bool) -> int:
    """Run the training loop over a file. ``keep``: write checkpoints, so that it can be resumed."""
    ranks = join_ranks(settings.model, settings.trainer)
    if ranks is not None and ranks.rank > 0:
        return run_replica(ranks, settings.trainer)
    started, stop, rejected = time.monotonic(), stop_on_signals(), Counter[str]()
    if keep and not path.is_file() and path.exists() and not path.is_dir():
        raise FileError(
            f"{path}: expected a file that can be read again after a restart, for --checkpoint-dir, got a pipe; "
            "write it to a file, or leave --checkpoint-dir out"
        )
    known = settings.action.kinds
    either = (*known, *(kind for kind in RATING_KINDS if kind not in known))[:MAX_KINDS]
    admitted = dataclasses.replace(settings.action, kinds=either)
    actions = read_actions(path, admitted)
    first = next(actions)
    action, sequence, model = file_configs(settings, first)
    already_open = iter([itertools.chain([first], actions)])
    config = settings.trainer

    def reject(rejection: Rejection) -> None:
        rejected[rejection.reason] += 1

    def open_source(positions: dict[int, Position]) -> FileSource:
        rejected.clear()
        stream = next(already_open, None) or read_actions(path, admitted)
        return FileSource(stream, action, sequence, config.file_take, positions, reject)

    trainer = Trainer(
        model,
        config,
        open_source,
        checkpoint_dir=Path(config.checkpoint_dir) if keep else None,
        stop=stop,
        identity=lambda: file_identity(path, action, sequence, config) if keep else {},
        ranks=ranks,
    )
    try:
        trainer.run()
    finally:
        if ranks is not None:
            ranks.close()
    report = file_report(trainer, time.monotonic() - started, dict(rejected))
    print(_words(report), flush=True)
    if as_json:
        print(json.dumps(report), flush=True)
    return 0


def file_identity(path: Path, action: ActionConfig, sequence: SequenceConfig, config: TrainerConfig) -> dict[str, Any]:
    """What determines a file's examples and their numbers. The file is identified by its size, start and end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(FINGERPRINT_BYTES)
        file.seek(max(0, size - FINGERPRINT_BYTES))
        ends += file.read()
    sections = {"action": dataclasses.asdict(action), "sequence": dataclasses.asdict(sequence)}
    settings = {
        f"{name}.{key}": list(value) if isinstance(value, tuple) else value
        for name, section in sections.items()
        for key, value in section.items()
    }
    return {"trainer.file_take": config.file_take, **settings, "--file": f"{size} bytes, {xxh3_64_hexdigest(ends)}"}


def file_configs(settings: Settings, first: dict[str, Any]) -> tuple[ActionConfig, SequenceConfig, ModelConfig]:
    """The configuration's sections, adapted to ratings if the file's first action is one, unless the configuration
    itself names the kinds of ratings."""
    kinds = first.get("action")
    named = {kinds} if isinstance(kinds, str) else set(kinds or ())
    if named <= set(settings.action.kinds) or not named <= set(RATING_KINDS):
        return settings.action, settings.sequence, settings.model
    log.info("a file of ratings: kinds rate, like (4 and above), love (5); no join window")
    action = dataclasses.replace(settings.action, kinds=RATING_KINDS)
    sequence = dataclasses.replace(settings.sequence, join_window_s=0.0)
    return action, sequence, dataclasses.replace(settings.model, kinds=RATING_KINDS)


def file_report(trainer: Trainer, seconds: float, rejected: dict[str, int]) -> dict[str, Any]:
    """The results of a pass over a file."""
    metrics = trainer.progress.metrics
    overall, ranking = metrics["retrieval"]["all"], metrics["ranking"]["all"]
    num = trainer.learner.num_interactions
    return {
        "interactions_trained": num,
        "steps": trainer.learner.num_steps,
        "seconds": round(seconds, 2),
        "interactions_per_s": round(num / seconds, 1),
        "rejected": rejected,
        "hr10": overall["model"]["hr10"],
        "hr10_network": overall["network"]["hr10"],
        "hr10_counts": overall["counts"]["hr10"],
        "hr10_popular": overall["popular"]["hr10"],
        "hr10_popular_unseen": overall["popular_unseen"]["hr10"],
        "ne": ranking["ne"],
        "ne_popular": ranking["ne_baseline"],
        "metrics": metrics,
    }


def _words(report: dict[str, Any]) -> str:
    def number(key: str) -> str:
        return "-" if report[key] is None else f"{report[key]:.4f}"

    return (
        f"{report['interactions_trained']} interactions in {report['steps']} steps, {report['seconds']} s\n"
        f"HR@10 {number('hr10')}; its network alone {number('hr10_network')}, counting alone {number('hr10_counts')}; "
        f"most popular among unseen {number('hr10_popular_unseen')}, "
        f"among all {number('hr10_popular')}\n"
        f"NE {number('ne')}; an item's own rate {number('ne_popular')}"
    )
