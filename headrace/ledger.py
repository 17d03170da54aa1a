"""What the audit counts in the sequences topic: examples by number and user.

Nothing here talks to a broker: records in, violations out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wire.config import SequenceConfig
from wire.example import Example, num_features_of
from wire.example_log import ExampleLog, Verdict
from wire.history import History

MAX_SHOWN = 20


class Violations(list[str]):
    """How many violations there were, and descriptions of the first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def add(self, what: str) -> None:
        """Count one; keep the descriptions of the first twenty."""
        self.num += 1
        if len(self) < MAX_SHOWN:
            self.append(what)


@dataclass(slots=True)
class UserLedger:
    """A user's interactions as the examples delivered them."""

    history: History
    """Everything delivered, over the user's whole lifetime."""
    recent: History
    """What was delivered since the partition's last gap, which may have been about this user; the same one as
    ``history`` for a user who has met none."""
    gaps: int
    """How many gaps from compaction the partition had when this user was last seen."""
    is_end_known: bool
    """Whether ``recent`` ends with the user's last interaction."""
    upto: tuple[int, int] = (-1, -1)
    """Offset, and index in its record, of the last action included."""

    @property
    def num(self) -> int:
        """Interactions that began."""
        return self.history.end


class Pieces(NamedTuple):
    """How many new interactions and later kinds an example contains."""

    num_new: int
    num_feedback: int


class SequenceLedger:
    """One partition of the sequences topic."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.log = ExampleLog()
        self.users: dict[str, UserLedger] = {}
        self.pieces: dict[int, Pieces] = {}
        """By example number."""
        self.times: dict[int, tuple[int, int]] = {}
        """Offset of an action → the lowest and the highest time of the newest action that is covered, as the examples
        say that end with it and teach anything."""
        self.newest_ms: dict[int, int] = {}
        """That time, by example number."""
        self.last: Example | None = None
        self.num_interactions = 0
        self.num_feedback = 0
        self.num_duplicates = 0
        self.num_stale = 0
        self.num_forgotten = 0
        """Interactions of users who have been forgotten since."""
        self.migrated = list[Example]()
        """The users migrated from another deployment (`Example.is_migrated`)."""
        self.num_missing = 0
        """Numbers that compaction has removed."""
        self.lost = Violations()
        """Numbers that are missing for any other reason."""
        self.not_once = Violations()
        """Interactions and kinds that were not delivered exactly once."""
        self._gaps = 0
        self._next_offset = 0
        self._num_removed = 0
        """Offsets without a record since the last example that counts."""

    def pass_over(self, offset: int) -> None:
        """A record that is no example: a tombstone, or a foreign one."""
        self._num_removed += offset - self._next_offset
        self._next_offset = offset + 1

    def feed(self, offset: int, example: Example) -> None:
        """One record, in the order of offsets."""
        self.pass_over(offset)
        verdict = self.log.feed(example)
        if verdict is Verdict.GAP:
            assert self.log.gap is not None
            self._note_gap(self.log.gap.expected, self.log.gap.got)
            self.log.take(example)
        if verdict in (Verdict.ACCEPT, Verdict.GAP):
            self._num_removed = 0
            self._accept(example)
        self.num_duplicates += verdict is Verdict.DUPLICATE
        self.num_stale += verdict is Verdict.STALE

    def _note_gap(self, expected: int, got: int) -> None:
        # Each example had an offset, which compaction leaves empty: more examples than these were never there.
        num, num_removed = got - expected, self._num_removed
        self.num_missing += min(num, num_removed)
        self._gaps += num_removed > 0
        if num > num_removed:
            most = f", of which compaction can have removed {num_removed}" if num_removed else ""
            self.lost.add(f"partition {self.partition}: expected example {expected}, got {got}{most}")

    def _accept(self, example: Example) -> None:
        self.last = example
        self.pieces[example.number] = Pieces(example.num_new, example.num_feedback)
        self.num_interactions += example.num_new
        self.num_feedback += example.num_feedback
        self.newest_ms[example.number] = stated_ms = example.newest_record_ms
        if example.num_new or example.num_feedback:
            lowest, highest = self.times.get(example.user_offset, (stated_ms, stated_ms))
            self.times[example.user_offset] = min(lowest, stated_ms), max(highest, stated_ms)
        if example.is_migrated:
            self.migrated.append(example)
        if example.mark is not None:
            gone = [self.users.pop(name) for name in example.forgotten if name in self.users]
            self.num_forgotten += sum(user.num for user in gone)
            return
        user = self.users.get(example.user)
        if user is None:
            first = empty_history(example)
            user = self.users[example.user] = UserLedger(first, first, self._gaps, self._gaps == 0)
        elif user.gaps != self._gaps:
            user.recent, user.gaps, user.is_end_known = empty_history(example), self._gaps, False
        if not example.is_migrated:
            self._check_once(user, example)
        user.history.fold(example)
        if user.recent is not user.history:
            user.recent.fold(example)
        user.is_end_known |= example.num_new > 0
        user.upto = (example.user_offset, example.user_index)

    def wrong_content(self, user: UserLedger, expected: History | None, sequence: SequenceConfig) -> str:
        """How what was delivered of a user differs from the expected; empty if it does not. What compaction may have
        left in an earlier state is compared with nothing."""
        kept = differences(expected, user.history, kept_from(user.history, sequence))
        is_recent = user.gaps == self._gaps
        return kept or (differences(expected, user.recent, user.recent.start) if is_recent else "")

    def _check_once(self, user: UserLedger, example: Example) -> None:
        """New interactions follow the last ones; an earlier one keeps its kinds and gains the new ones. What compaction
        may have removed is compared with nothing."""
        where, before = f"partition {self.partition}, user {example.user!r}, example {example.number}", user.recent
        if example.num_new and user.is_end_known and example.first_new_index != before.end:
            self.not_once.add(
                f"{where}: expected new interactions from {before.end} on, got them from {example.first_new_index} on"
            )
            return
        num_old = len(example.rows) - example.num_new
        first, rows = before.window(example.first_index, example.first_index + num_old)
        if user.gaps == 0 and (first != example.first_index or len(rows) != num_old):
            self.not_once.add(f"{where}: expected {num_old} earlier interactions of the segment, got {len(rows)}")
            return
        new_bits = np.zeros(num_old, np.uint32)
        new_bits[example.feedback_index] = example.feedback_bits
        here = slice(first - example.first_index, first - example.first_index + len(rows))
        is_wrong = (rows["bits"] ^ new_bits[here]) != example.rows["bits"][:num_old][here]
        if (is_wrong & ((rows["item"] != 0) | (user.gaps == 0))).any():
            self.not_once.add(f"{where}: earlier interactions have kinds that were never marked as new, or twice")


def empty_history(example: Example) -> History:
    """An empty history for this example's user that never forgets anything."""
    return History(num_features_of(example.rows), 1 << 40, example.segment_len)


def differences(expected: History | None, got: History, since: int) -> str:
    """A description of how the delivered interactions differ from the expected ones, from the place ``since`` on; empty
    if they do not. Some may be missing (removed by compaction)."""
    if expected is None or got.end > expected.end:
        return f"{got.end} interactions were delivered, the actions amount to {expected.end if expected else 0}"
    first, rows = got.window(since, got.end)
    wanted = expected.window(first, got.end)[1]
    for column in rows.dtype.names or ():
        ours, theirs = rows[column], wanted[column]
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs)) if column == "value" else ours == theirs
        wrong = np.flatnonzero(~same.reshape(len(rows), -1).all(axis=1) & (rows["item"] != 0))
        if len(wrong):
            return f"interaction {first + wrong[0]} was delivered with a {column} that differs from the actions'"
    return ""


def num_absent(got: History, sequence: SequenceConfig) -> int:
    """How many interactions of the user's kept segments no example has delivered. Compaction leaves each of them, since
    only a later record of the same segment takes a record's place."""
    start = kept_from(got, sequence)
    first, rows = got.window(start, got.end)
    return first - start + int((rows["item"] == 0).sum())


def kept_from(got: History, sequence: SequenceConfig) -> int:
    """The place at which the user's kept segments begin. Of an older one, compaction may have left a record and removed
    a later one with more kinds, since their keys are those of other segments now."""
    return max(0, (got.end - 1) // sequence.segment_len - sequence.num_slots + 1) * sequence.segment_len
