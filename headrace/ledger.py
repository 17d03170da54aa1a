"""What the audit counts in the sequences and weights topics: examples by number and user, steps by number.

Nothing here talks to a broker: records in, violations out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from wire.example import Example, num_features_of
from wire.example_log import ExampleLog, Verdict
from wire.history import History
from wire.weights import Manifest

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
    gaps: int
    """How many gaps from compaction the partition had when this user was last seen."""
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

    def __init__(self, partition: int, first_offset: int) -> None:
        self.partition = partition
        self.log = ExampleLog()
        self.users: dict[str, UserLedger] = {}
        self.pieces: dict[int, Pieces] = {}
        """By example number."""
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
        """Numbers that compaction or retention has removed."""
        self.lost = Violations()
        """Numbers that are missing for any other reason."""
        self.not_once = Violations()
        """Interactions and kinds that were not delivered exactly once."""
        self._gaps = 0
        self._next_offset = 0
        self._gap_before = first_offset > 0

    def feed(self, offset: int, example: Example) -> None:
        """One record, in the order of offsets."""
        self._gap_before |= offset > self._next_offset
        self._next_offset = offset + 1
        verdict = self.log.feed(example)
        if verdict is Verdict.GAP:
            assert self.log.gap is not None
            self._note_gap(self.log.gap.expected, self.log.gap.got)
            self.log.take(example)
        if verdict in (Verdict.ACCEPT, Verdict.GAP):
            self._gap_before = False
            self._accept(example)
        self.num_duplicates += verdict is Verdict.DUPLICATE
        self.num_stale += verdict is Verdict.STALE

    def _note_gap(self, expected: int, got: int) -> None:
        # Compaction leaves a gap in Kafka's offsets too. Without one, the examples were never there.
        if self._gap_before:
            self.num_missing += got - expected
            self._gaps += 1
        else:
            self.lost.add(f"partition {self.partition}: expected example {expected}, got {got}")

    def _accept(self, example: Example) -> None:
        self.last = example
        self.pieces[example.number] = Pieces(example.num_new, example.num_feedback)
        self.num_interactions += example.num_new
        self.num_feedback += example.num_feedback
        if example.is_migrated:
            self.migrated.append(example)
        if example.mark is not None:
            gone = self.users.pop(example.user, None)
            self.num_forgotten += gone.num if gone is not None else 0
            return
        user = self.users.get(example.user)
        if user is None:
            user = self.users[example.user] = UserLedger(empty_history(example), 0)
        if user.gaps == self._gaps and not example.is_migrated:
            self._check_once(user.history, example)
        user.history.fold(example)
        user.gaps, user.upto = self._gaps, (example.user_offset, example.user_index)

    def _check_once(self, before: History, example: Example) -> None:
        """New interactions follow the last ones; an earlier one keeps its kinds and gains the new ones."""
        where = f"partition {self.partition}, user {example.user!r}, example {example.number}"
        if example.num_new and example.first_new_index != before.end:
            self.not_once.add(
                f"{where}: expected new interactions from {before.end} on, got them from {example.first_new_index} on"
            )
            return
        num_old = len(example.rows) - example.num_new
        first, rows = before.window(example.first_index, example.first_index + num_old)
        new_bits = np.zeros(num_old, np.uint32)
        new_bits[example.feedback_index] = example.feedback_bits
        if first != example.first_index or len(rows) != num_old:
            self.not_once.add(f"{where}: expected {num_old} earlier interactions of the segment, got {len(rows)}")
        elif not np.array_equal(rows["bits"] ^ new_bits, example.rows["bits"][:num_old]):
            self.not_once.add(f"{where}: earlier interactions have kinds that were never marked as new, or twice")


def empty_history(example: Example) -> History:
    """An empty history for this example's user that never forgets anything."""
    return History(num_features_of(example.rows), 1 << 40, example.segment_len)


def differences(expected: History | None, got: History) -> str:
    """A description of how the delivered interactions differ from the expected ones; empty if they do not. Some may be
    missing (removed by compaction)."""
    first, rows = got.window(got.start, got.end)
    if expected is None or got.end > expected.end:
        return f"{got.end} interactions were delivered, the actions amount to {expected.end if expected else 0}"
    wanted = expected.window(first, got.end)[1]
    for column in rows.dtype.names or ():
        ours, theirs = rows[column], wanted[column]
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs)) if column == "value" else ours == theirs
        wrong = np.flatnonzero(~same.reshape(len(rows), -1).all(axis=1) & (rows["item"] != 0))
        if len(wrong):
            return f"interaction {first + wrong[0]} was delivered with a {column} that differs from the actions'"
    return ""


@dataclass(slots=True)
class _Lineage:
    """One line of training steps, possibly by several epochs."""

    steps: list[list[tuple[int, int, int]]] = field(default_factory=list)
    first_step: int = 0
    """Steps before this one were published before the topic's first manifest."""
    newest: Manifest | None = None
    num_repeated: int = 0
    """Steps that a resumed trainer published again."""
    set_aside: set[int] = field(default_factory=set)
    """Steps that taught nothing, because what they did to the weights was not finite."""
    parent: str = ""
    """The lineage that this one began from, at ``first_step``."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where its examples came from; elsewhere, the same numbers mean other examples."""


class PlanLedger:
    """The steps of training according to the manifests: which examples, in which order."""

    def __init__(self) -> None:
        self.lineages: dict[str, _Lineage] = {}
        self.newest: Manifest | None = None
        self.gaps = Violations()
        self.changes = Violations()
        self.num_versions = 0

    def feed(self, manifest: Manifest) -> None:
        """Add a published version, in the topic's order; only versions that count (not of a fenced epoch)."""
        self.num_versions += 1
        self.newest = manifest
        line = self.lineages.get(manifest.lineage)
        if line is None:
            line = self.lineages[manifest.lineage] = _Lineage(
                first_step=manifest.first_step, parent=manifest.parent, source=manifest.source
            )
        line.newest = manifest
        known = line.first_step + len(line.steps)
        if manifest.first_step > known:
            self.gaps.add(
                f"version {manifest.epoch}/{manifest.number} begins with step {manifest.first_step}; "
                f"steps {known} to {manifest.first_step - 1} were never published"
            )
            line.steps += [[]] * (manifest.first_step - known)
        self._merge(line, manifest)

    def _merge(self, line: _Lineage, manifest: Manifest) -> None:
        """Add a version's steps. A resumed trainer may publish steps again, but a published step never changes."""
        start = max(0, manifest.first_step - line.first_step)
        plan = [[(int(p), int(low), int(high)) for p, low, high in step] for step in manifest.plan]
        before = line.steps[start : start + len(plan)]
        line.num_repeated += len(before)
        for index, (old, new) in enumerate(zip(before, plan, strict=False), start=manifest.first_step):
            if old != new:
                self.changes.add(
                    f"step {index} was {old} at first, and is {new} in version {manifest.epoch}/{manifest.number}"
                )
        line.steps[start:] = plan
        line.set_aside.update(manifest.set_aside)

    @property
    def current(self) -> _Lineage:
        """The lineage of the newest version, with the steps of the one that it began from, if any."""
        if self.newest is None:
            return _Lineage()
        line = self.lineages[self.newest.lineage]
        while (parent := self.lineages.get(line.parent)) is not None:
            num = line.first_step - parent.first_step
            if not 0 <= num <= len(parent.steps) or parent.source != line.source:
                break
            line = _Lineage(
                [*parent.steps[:num], *line.steps], parent.first_step, line.newest, line.num_repeated,
                {*(each for each in parent.set_aside if each < line.first_step), *line.set_aside},
                parent.parent, parent.source,
            )  # fmt: skip
        return line


@dataclass(slots=True)
class Trained:
    """What a lineage's steps trained of one partition: numbers ``first`` to ``last``, each once if there is no
    violation."""

    first: int
    last: int
    num_interactions: int = 0
    num_feedback: int = 0


def trained(line: _Lineage, ledgers: dict[int, SequenceLedger], violations: Violations) -> dict[int, Trained]:
    """Follow the steps of a lineage: each number of a partition once, in order, and only numbers that exist."""
    found: dict[int, Trained] = {}
    for index, step in enumerate(line.steps, start=line.first_step):
        for partition, low, high in step:
            state = found.get(partition)
            # If earlier manifests are gone, a partition may begin anywhere.
            expected = (low if line.first_step > 0 else 0) if state is None else state.last + 1
            if low != expected or high < low:
                how = "again" if low < expected else "skipping some"
                violations.add(
                    f"step {index} trains examples {low} to {high} of partition {partition}, {how}: "
                    f"expected {expected} next"
                )
            state = found.setdefault(partition, Trained(low, low - 1))
            pieces = _pieces(ledgers.get(partition), low, high, index, violations)
            if index not in line.set_aside:
                state.num_interactions += pieces.num_new
                state.num_feedback += pieces.num_feedback
            state.last = max(state.last, high)
    return found


def _pieces(ledger: SequenceLedger | None, low: int, high: int, step: int, violations: Violations) -> Pieces:
    found = []
    for number in range(low, high + 1):
        pieces = None if ledger is None else ledger.pieces.get(number)
        if pieces is not None:
            found.append(pieces)
        elif ledger is None or (number > ledger.log.last_number or ledger.num_missing == 0):
            violations.add(f"step {step} trains an example that the sequences topic never held: {number}")
    return Pieces(*map(sum, zip(*found, strict=True))) if found else Pieces(0, 0)
