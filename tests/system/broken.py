"""Builds that break a promise on purpose: ``python -m tests.system.broken NAME worker --config F``.

Each is the real worker with one thing broken; or, by a name of `tests.trainer.broken` and ``train``, the real trainer.
The audit has to notice.
"""

from __future__ import annotations

import sys
from typing import Any

from rocksdict import WriteBatch

import state.compiled
import state.emitter
import state.intake
import state.store
import stream.heartbeat
import stream.retention
from headrace.command import run


def _in_python() -> None:
    """The definition applies the actions, so that its parts can be broken."""
    applier = state.store.BatchApplier

    def uncompiled(sequencer: Any, intake: Any, _: Any, *rest: Any) -> Any:
        return applier(sequencer, intake, None, *rest)

    state.store.BatchApplier = uncompiled  # type: ignore[assignment, misc]


def loses_actions() -> None:
    """Of every hundred actions one is acknowledged and then lost: the last of its record."""
    apply, num_seen = state.compiled.CompiledUsers.apply, 0

    def forgetful(self: Any, run: Any, sequencer: Any) -> Any:
        nonlocal num_seen
        kept = []
        for first, last, offset, record_ms in run:
            before, num_seen = num_seen, num_seen + last - first
            kept.append((first, last - (num_seen // 100 - before // 100), offset, record_ms))
        return apply(self, kept, sequencer)

    state.compiled.CompiledUsers.apply = forgetful  # type: ignore[method-assign]


def keeps_feedback_to_itself() -> None:
    """Kinds that an interaction gets later are in its segment, but no example says that they are new."""
    _in_python()
    end_run = state.emitter.Emitter.end_run

    def silent(self: Any, user: Any) -> None:
        user.feedback.clear()
        end_run(self, user)

    state.emitter.Emitter.end_run = silent  # type: ignore[method-assign]


def forgets_examples() -> None:
    """An example at the end of the outbox is deleted before the broker has it."""
    outbox = state.store.PartitionStore.outbox

    def leaky(self: Any, start: int | None = None, limit: int = 1000) -> Any:
        entries = outbox(self, start, limit)
        return [*entries[:-2], entries[-1]] if len(entries) > 2 and entries[-2].is_example else entries

    state.store.PartitionStore.outbox = leaky  # type: ignore[method-assign]


def swallows_dead_letters() -> None:
    """Malformed records are counted and dropped."""
    outbox = state.store.PartitionStore.outbox

    def tidy(self: Any, start: int | None = None, limit: int = 1000) -> Any:
        entries = outbox(self, start, limit)
        return [each for each in entries if each.is_example] or entries[-1:]

    state.store.PartitionStore.outbox = tidy  # type: ignore[method-assign]


def mixes_up_users() -> None:
    """Within a record, the later action of a user comes first."""
    _in_python()
    decode = state.intake.decode_record

    def backwards(value: bytes | None, record_ms: int, config: Any) -> Any:
        return decode(value, record_ms, config)[::-1]

    state.intake.decode_record = backwards


def forgets_few_at_a_time() -> None:
    """Not broken: many small requests, one after the other."""
    stream.retention.MOST, stream.heartbeat.BEAT_S = 3, 0.2


def forgets_on_its_disk_alone() -> None:
    """Users who have not come for long are removed where they are found."""

    async def step(self: Any, store: Any) -> None:
        before, batch = store.days.quiet_before(self._num_days), WriteBatch(raw_mode=True)
        for name in store.users.quiet(b"", 1000, before)[0] if before is not None else ():
            store.users.erase(batch, store.users.load(name))
        store._db.write(batch)

    stream.retention.Retention.step = step  # type: ignore[method-assign]


BUILDS = {
    each.__name__: each
    for each in (
        loses_actions, keeps_feedback_to_itself, forgets_examples, swallows_dead_letters, mixes_up_users,
    )
}  # fmt: skip
"""What an audit notices."""
FORGETTING = {each.__name__: each for each in (forgets_few_at_a_time, forgets_on_its_disk_alone)}
"""What no audit could notice."""


if __name__ == "__main__":
    name, command, *arguments = sys.argv[1:]
    if command == "train":
        import tests.trainer.broken

        getattr(tests.trainer.broken, name)()
    elif name != "sound":
        (BUILDS | FORGETTING)[name]()
    sys.exit(run("headrace", arguments=[command, *arguments]))
