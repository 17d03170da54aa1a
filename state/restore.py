"""Why a restored store equals one that was never interrupted, and the part of it that reads examples.

Let the sequences topic hold the examples up to number n, and let R, C be `replay_from_offset` and `replay_clock_ms` of
example n. A user's newest example among them is E(u), made when the partition had applied A(u), with the clock at K(u).

1.  E(u) holds all there is of u at A(u): the last ``max_context`` interactions (older ones influence nothing), those
    sealed but not sent yet, the open ones, ids, features. So the user loaded from E(u) is the user at A(u).
2.  R is the lowest offset of an action that is in no E(u). It is computed example by example, so that it is right for
    every prefix of a batch's examples. Hence no action of u that was accepted lies between A(u) and R, and every one
    behind A(u) is replayed; one at or below `user_offset` is in E(u), and is skipped (`skip_upto`).
3.  The clock is a function of the log alone: it starts the replay at C, its value just before R, and every replayed
    record moves it as it did, also by actions that are skipped. When the first action of u that is not skipped comes,
    the clock is what it was when it came first; so due interactions, joins, lateness and clamps fall out the same.
4.  An interaction that only the clock sealed (by a tick, or another user), and whose example was lost with the disk, is
    open in E(u) and due: it is sealed again, before any action behind A(u) meets it, in the same order.
5.  While R <= offset <= A(u) the clock lies below K(u), and all that is open in E(u) is due after K(u) (or is due from
    the record of A(u) itself on): nothing of u is sealed before its time.
6.  Interaction k of u's lifetime is therefore the same in both lives, and `first_new_index` goes on where E(u) ended:
    each is new in exactly one accepted example. Only their grouping into examples may differ.
7.  Counts: example n carries them as of `counted_offset` >= R - 1. They are taken over, and replayed records at or
    below that offset are not counted again.
8.  Dead letters of replayed records are written again, with the same topic, partition, offset and index, which is what
    makes them one: who counts dead letters counts those. None is lost: `outbox` never hands out an example together
    with a dead letter before it, so what is in the topic proves that older dead letters were acknowledged.
9.  Names: those of the examples at hand are known; others are sent again when their items are seen again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rocksdict import WriteBatch

from state.database import Database
from state.sequencer import Sequencer
from state.shelf import Shelf
from wire.example import Example
from wire.example_log import ExampleLog, Verdict

_BATCH_USERS = 500


@dataclass
class Restored:
    """What was read. ``unsent``: users whose newest example says that sealed interactions were to follow."""

    num_examples: int = 0
    newest: Example | None = None
    writer_epoch: int = 0
    unsent: set[str] = field(default_factory=set)


def adopt_newest(db: Database, shelf: Shelf, examples: Iterable[Example]) -> Restored:
    """Put each user's newest accepted example on the shelf. Takes as much memory as one write batch."""
    log, restored = ExampleLog(None, allow_holes=True), Restored()
    batch, names = WriteBatch(raw_mode=True), set[str]()
    for example in examples:
        if log.feed(example) is not Verdict.ACCEPT:
            continue
        if example.user in names or len(names) >= _BATCH_USERS:
            db.write(batch)
            batch, names = WriteBatch(raw_mode=True), set()
        shelf.adopt(batch, example)
        names.add(example.user)
        (restored.unsent.add if example.num_unsent else restored.unsent.discard)(example.user)
        restored.newest = example
        restored.num_examples += 1
    db.write(batch)
    restored.writer_epoch = log.writer_epoch
    return restored


def rewind(sequencer: Sequencer, restored: Restored) -> None:
    """Put the partition to just before the first action that has to be replayed."""
    newest = restored.newest
    if newest is not None:
        sequencer.applied_offset = newest.replay_from_offset - 1
        sequencer.applied_record_ms = newest.newest_record_ms
        sequencer.clock_ms = newest.replay_clock_ms
        sequencer.counted_offset = newest.counted_offset
        sequencer.counts = newest.counts
        sequencer.next_number = newest.number + 1
        sequencer.writer_epoch = restored.writer_epoch
