"""What the audit counts in the weights topic: the steps of each line of training, by number.

Nothing here talks to a broker: manifests in, violations out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.ledger import Pieces, SequenceLedger, Violations
from wire.weights import Manifest


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
    num_set_aside: int = 0
    """Interactions of the steps that taught nothing."""
    newest_ms: int = -1
    """The time of the newest action that the examples cover."""


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
            if index in line.set_aside:
                state.num_set_aside += pieces.num_new
            else:
                state.num_interactions += pieces.num_new
                state.num_feedback += pieces.num_feedback
            state.last = max(state.last, high)
            times = ledgers[partition].newest_ms if partition in ledgers else {}
            state.newest_ms = max([state.newest_ms, *(times.get(number, -1) for number in range(low, high + 1))])
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


def compare(
    manifest: Manifest,
    line: _Lineage,
    found: Mapping[int, Trained],
    ledgers: Mapping[int, SequenceLedger],
    violations: Violations,
) -> None:
    """What the manifest states of its line must be what the steps of the line amount to."""
    for partition, last in manifest.covered.items():
        reached = found[partition].last if partition in found else -1
        # Before the first step that the topic has, the trainer may have learned all of a partition.
        if last != reached and (partition in found or line.first_step == 0):
            violations.add(f"partition {partition}: the steps end with {reached}, the manifest says {last}")
    if line.first_step or any(ledger.num_missing for ledger in ledgers.values()):
        return
    num = sum(each.num_interactions for each in found.values())
    num_feedback = sum(each.num_feedback for each in found.values())
    stated = manifest.num_interactions, manifest.num_feedback
    if stated != (num, num_feedback):
        violations.add(
            f"the steps train {num} interactions and {num_feedback} pieces of later feedback, the manifest says "
            f"{stated[0]} and {stated[1]}"
        )
    newest_ms = max((each.newest_ms for each in found.values()), default=-1)
    if manifest.newest_record_ms > max(newest_ms, 0):
        violations.add(
            f"the manifest says that it has learned an action of {manifest.newest_record_ms} ms; the newest of its "
            f"examples is of {newest_ms}"
        )


def num_waiting(manifest: Manifest | None, found: Mapping[int, Trained], ledgers: Mapping[int, SequenceLedger]) -> int:
    """Interactions behind the last example that the newest version has met."""
    last = dict(manifest.covered) if manifest is not None else {}
    last |= {partition: each.last for partition, each in found.items()}
    return sum(
        pieces.num_new
        for partition, ledger in ledgers.items()
        for number, pieces in ledger.pieces.items()
        if number > last.get(partition, -1)
    )
