"""`headrace repartition`: continue a deployment under another prefix, with another number of partitions.

The old topics stay as they are. Everything in the new ones is derived from them, so the command may be killed at any
point and run again: it resumes where it was. Before it reports success, it reads back everything that it wrote. Until
then no worker starts on the new topics (`stream.migration`).
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from threading import Event

import msgspec
import structlog

from headrace.added_partitions import carry
from headrace.config import Settings
from headrace.migration import Source, restore
from headrace.migration_writer import fill, verify
from headrace.rollout import send_decision, who
from headrace.sentences import say
from stream.migration import migration_to
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.journal import read_journal
from trainer.checkpoint.reading import Checkpoint
from trainer.sources.positions import sequences_identity
from trainer.sources.source import Position
from wire.control import MIGRATION_KEY, Migration
from wire.errors import HeadraceError
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect, spans
from wire.shape import disagreement, encode_shape, shape_of
from wire.topics import Topics

log = structlog.get_logger("headrace")
KEPT = ("model", "trainer", "lineage", "parent", "num_set_aside_interactions")
"""The fields of a checkpoint's metadata that are kept; the others are about topics."""


def repartition(old: Settings, new: Settings, *, without_trainer: bool = False, without_waiting: bool = False) -> int:
    """Migrate the users and the trainer's checkpoint of ``old`` to ``new``; or, if that is done, report whether actions
    have arrived in the old topics since. Returns the exit status.

    ``without_waiting``: go on though interactions wait for their feedback (`trainer.feedback`), which are not learned
    then.
    """
    _check_pair(old, new)
    ensure_topics(new.kafka)
    found = migration_to(new.kafka)
    if found is not None and found.source != old.kafka.prefix:
        raise HeadraceError(
            f"kafka.prefix {new.kafka.prefix!r}: expected to continue {old.kafka.prefix!r}, but it continues "
            f"{found.source!r}; choose another prefix"
        )
    if found is not None and found.is_done:
        return _compare_ends(old, new, found.ends)
    _say(new, Migration(source=old.kafka.prefix, is_done=False, made_ms=_now_ms(), made_by=who()))
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        checkpoint = None if without_trainer else _last_checkpoint(old)
        source = restore(old, Path(folder), _learned_ms(checkpoint))
        if checkpoint is not None:
            _check_covers(old, checkpoint, source)
        if source.num_waiting and not without_waiting:
            raise StillWaiting(old, source.num_waiting)
        tallies, num_users = fill(old, new, source)
    positions = verify(new, tallies)
    if checkpoint is not None:
        _keep(checkpoint, new, positions)
    num_carried = carry(old, new)
    if source.ends != (now := _ends(old)):
        raise StillWritten(old, source.ends, now)
    _say(
        new,
        Migration(source=old.kafka.prefix, is_done=True, made_ms=_now_ms(), made_by=who(), ends=source.ends),
    )
    num = sum(each.num for each in tallies)
    if num_carried:
        say(f"{num_carried:,} records of partitions that were added were sent to the new actions topic")
    step = "without a trainer" if checkpoint is None else f"the trainer goes on at step {checkpoint.step}"
    say(
        f"{num_users:,} users in {num:,} segments are in {new.kafka.partitions} partitions of "
        f"{Topics.under(new.kafka.prefix).sequences}; {step}. Start the new worker, trainer and servers"
    )
    return 0


class StillWritten(HeadraceError):
    """Actions arrived in the old topic while its users were being migrated."""

    def __init__(self, old: Settings, before: dict[int, int], now: dict[int, int]) -> None:
        num = sum(now.values()) - sum(before.values())
        super().__init__(
            f"{Topics.under(old.kafka.prefix).actions}: expected no action after the migration began, got {num} "
            "records; find the producer that still writes there, let the old worker and trainer learn them and stop, "
            "and migrate to another kafka.prefix"
        )


class StillWaiting(HeadraceError):
    """The trainer has taken interactions that it has not learned, and a migrated one is never learned."""

    def __init__(self, old: Settings, num: int) -> None:
        super().__init__(
            f"trainer.feedback: expected that nothing waits for feedback any more, but {num:,} interactions do; start "
            f"the old worker and trainer again, send one action after {old.trainer.feedback_window_s:g} s, by which "
            "they are learned, and give --without-waiting for that one"
        )


def _check_pair(old: Settings, new: Settings) -> None:
    if old.kafka.prefix == new.kafka.prefix:
        raise HeadraceError(
            f"kafka.prefix: expected another one in the new configuration, got {new.kafka.prefix!r} in both"
        )
    if old.trainer.checkpoint_dir == new.trainer.checkpoint_dir:
        raise HeadraceError(
            f"trainer.checkpoint_dir: expected another folder in the new configuration, got "
            f"{new.trainer.checkpoint_dir}"
        )
    before, now = shape_of(old.action, old.sequence), shape_of(new.action, new.sequence)
    if otherwise := disagreement(encode_shape(before), now):
        raise HeadraceError(f"{otherwise}: a migration changes the number of partitions and nothing else")


def _compare_ends(old: Settings, new: Settings, ends: dict[int, int]) -> int:
    num = sum(_ends(old).values()) - sum(ends.values())
    say(f"{new.kafka.prefix} continues {old.kafka.prefix}: done earlier; {num:,} records have arrived there since")
    if num:
        say("find their producer: nothing reads these records, and none of their actions is known here")
    return 1 if num else 0


def _ends(settings: Settings) -> dict[int, int]:
    consumer = connect(settings.kafka)
    try:
        held = spans(consumer, Topics.under(settings.kafka.prefix).actions)
        return {number: span.end for number, span in held.items()}
    finally:
        consumer.close()


def _say(new: Settings, migration: Migration) -> None:
    send_decision(new, MIGRATION_KEY, migration)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# The trainer


def _last_checkpoint(old: Settings) -> Checkpoint:
    path = Path(old.trainer.checkpoint_dir)
    folder = CheckpointFolder(path, lambda what: log.error("checkpoint damaged", what=what))
    found = folder.load()
    if found is None:
        raise HeadraceError(
            f"checkpoint_dir {path}: expected the old trainer's checkpoints, found none; name its folder, or give "
            "--without-trainer: a new trainer then learns from the first new action on"
        )
    return found


def _learned_ms(checkpoint: Checkpoint | None) -> float:
    """Up to which Kafka timestamp the trainer has learned what it took; infinite unless it waits for feedback."""
    times = checkpoint.arrays["histories.waiting_ms"].tolist() if checkpoint is not None else []
    return times[1] if times else math.inf


def _check_covers(old: Settings, checkpoint: Checkpoint, source: Source) -> None:
    """Refuse a checkpoint that does not cover everything in the topic."""
    path = Path(old.trainer.checkpoint_dir)
    positions = msgspec.convert(checkpoint.meta["positions"], dict[int, Position], strict=False)
    learned = {number: positions.get(number, Position()).next_number for number in source.numbers}
    if learned != source.numbers or read_journal(path, checkpoint.step).steps:
        missing = sum(source.numbers.values()) - sum(learned.values())
        raise HeadraceError(
            f"checkpoint_dir {path}: expected a checkpoint that covers everything, but {max(0, missing)} examples come "
            "after it; let the old trainer learn them, and stop it with SIGTERM, which writes one"
        )


def _keep(checkpoint: Checkpoint, new: Settings, positions: dict[int, Position]) -> None:
    """Write the checkpoint with positions in the new topics. The users that it knows begin with what was migrated."""
    arrays = dict(checkpoint.arrays)
    arrays["histories.born"] = arrays["histories.born"] * 0
    meta = {name: checkpoint.meta[name] for name in KEPT if name in checkpoint.meta} | {
        "source": sequences_identity(new.kafka, Event()),
        "positions": {str(number): msgspec.structs.asdict(each) for number, each in positions.items()},
        "unpublished_first": checkpoint.step, "unpublished": [], "set_aside": [],
    }  # fmt: skip
    path = Path(new.trainer.checkpoint_dir)
    folder = CheckpointFolder(path, lambda what: log.error("checkpoint damaged", what=what)).open()
    try:
        if any(step != checkpoint.step for step in folder.steps()):
            raise HeadraceError(f"checkpoint_dir {path}: expected an empty folder, got another trainer's; name another")
        folder.write(Checkpoint(checkpoint.step, arrays, meta))
    finally:
        folder.close()
