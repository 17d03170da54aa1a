"""Why a restored store equals one that was never interrupted, and the part of it that reads examples.

Let the sequences topic hold the partition's examples up to number n: all of them or, after compaction, the newest of
each key (`wire.example.Address`). A user's actions that changed anything are emitted in runs, in order, one example
per run; let A(u) be the last action of user u's newest example.

1.  Put in place in the order of the topic, the examples give the user's state after A(u). Take an interaction that the
    user still keeps, at place p of segment s, and the example E of the last run that touched it. E holds it, and so
    does every example that replaces E under its key, as long as that one is of segment s too: the key of a whole
    segment has all of it, and under the key of place k of a growing one, each record holds at least what the one before
    held (`User.cover`), unless all of s was emitted in between. So the newest of them shows the interaction as it
    stands, and nothing of s after it says otherwise. Only a record of a later segment can end that, and before there is
    one, all of s has been emitted under the key of s.
2.  That key is a slot's: segment s gives way to segment s + ``num_slots``. When that one begins, the user no longer
    keeps s: nothing joins it, and none of its ids counts. So compaction removes only what the user has forgotten.
    Pieces of a growing segment may outlive it under their keys. Such a record is older than the one that holds the
    whole segment, so it never has the last word; and whatever is written of s after a later segment has taken over its
    pieces' keys is whole.
3.  Each example holds the ids of its interactions, as many as the user remembers, and the user's latest features. An
    action with an id changes its interaction, if only by that id, so it is emitted. An action that was not emitted
    changed nothing, and would change nothing again, because it meets the user in the same state.
4.  What becomes of an action depends on its user alone: not on other users, nor on where batches begin. So it is enough
    that, after the restore, each user meets the actions after A(u), each once and in order. That holds: the worker
    resumes at `resume_from_offset` of example n, which is at most the first action that no example covers (the first
    of its batch, unless n is the batch's last), and skips actions up to (`user_offset`, `user_index`).
5.  An example numbered n + 1 or higher covers runs after A(u). So interaction k of a user is the same in both lives and
    is new in one accepted example; so is each kind that is added to it later. Only the division into runs may differ.
6.  Counts: example n carries them as of `counted_offset`, the end of its batch. They are adopted, and records up to
    that offset are not counted again.
7.  Dead letters of records that are applied again are written again, with the same topic, partition, offset and index.
    These identify a dead letter, so a count by identity counts each once. None is lost: `outbox` never returns an
    example together with a dead letter before it, so an example in its topic proves that older dead letters were
    acknowledged.
8.  A user who was forgotten: the mark follows the tombstones of the user's keys, in a write batch of its own. If the
    topic has the mark, nothing of the user is left before it, and the actions to apply again start at the request or
    after it. If it does not, the user's examples are still there (compaction keeps them for
    ``min.compaction.lag.ms``), and the request is among the actions to apply again. Tombstones have no number and may
    be written twice; a record that counts and now lies below one is written again (`ExampleLog.buried`).
9.  Names: those in the examples are known; others are sent again when their items are next seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rocksdict import WriteBatch

from state.database import Database
from state.day_store import DayStore
from state.meta import Position
from state.sequencer import Sequencer
from state.user import User
from state.user_store import UserStore
from wire.action_json import ForgetRequest
from wire.example import Example, Mark
from wire.example_log import ExampleLog, Verdict
from wire.moment import MS_PER_DAY

_BATCH_USERS = 500


@dataclass
class Restored:
    """What was read."""

    num_examples: int = 0
    newest: Example | None = None
    writer_epoch: int = 0


def adopt_newest(db: Database, users: UserStore, days: DayStore, examples: Iterable[Example]) -> Restored:
    """Put the content of the accepted examples in place. Takes as much memory as one write batch."""
    log, restored = ExampleLog(None, allow_gaps=True), Restored()
    held, names = dict[str, User](), dict[int, int]()
    for example in examples:
        if log.feed(example) is not Verdict.ACCEPT:
            continue
        if example.mark is not None:
            _apply_mark(db, users, held, example)
        else:
            user = held.get(example.user) or users.load(example.user)
            held[example.user] = users.adopt(user, example)
            names |= dict.fromkeys(example.names, example.newest_record_ms // MS_PER_DAY)
            days.adopt(example)
        if len(held) >= _BATCH_USERS:
            _save(db, users, held, names)
        restored.newest = example
        restored.num_examples += 1
    _save(db, users, held, names)
    days.save_adopted()
    restored.writer_epoch = log.writer_epoch
    return restored


def _apply_mark(db: Database, users: UserStore, held: dict[str, User], mark: Example) -> None:
    batch = WriteBatch(raw_mode=True)
    for name in mark.forgotten:
        if (user := held.pop(name, None) or users.load(name)) is not None:
            users.erase(batch, user)
    if mark.marked_item:
        request = ForgetRequest("", mark.names[mark.marked_item], is_back=mark.mark is Mark.ITEM_BACK)
        users.save_forget_requests(batch, {mark.marked_item: request})
    db.write(batch)


def _save(db: Database, users: UserStore, held: dict[str, User], days: dict[int, int]) -> None:
    batch = WriteBatch(raw_mode=True)
    for user in held.values():
        users.save(batch, user)
    for item, day in days.items():
        users.names.save(batch, [item], day)
    db.write(batch)
    held.clear()
    days.clear()


def rewind(sequencer: Sequencer, restored: Restored) -> None:
    """Set the position to just before the first action that has to be applied again."""
    newest = restored.newest
    if newest is not None:
        sequencer.resume(
            Position(
                applied_offset=newest.resume_from_offset - 1,
                applied_record_ms=-1,
                newest_event_ms=newest.newest_event_ms,
                counted_offset=newest.counted_offset,
                counts=newest.counts,
                next_number=newest.number + 1,
                writer_epoch=restored.writer_epoch,
            )
        )
