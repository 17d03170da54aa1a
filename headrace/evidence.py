"""What each topic says, and the checks that compare them. `headrace.audit` reads the topics."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headrace.ledger import SequenceLedger, Violations, num_absent
from headrace.plan_ledger import PlanLedger, compare, num_waiting, trained
from headrace.recount import Recount
from headrace.report import Check, Report
from wire.shape import PARTITIONS, Shape
from wire.status import PartitionStatus
from wire.weights import TOPIC_ID

REASON_OF = {
    "action.max_future_s": "future",
    "action.min_timestamp_ms": "bad_time",
    "action.max_record_bytes": "oversized",
    "action.max_actions_per_record": "oversized",
}
"""A rule → the reason of the dead letters that it causes."""


@dataclass(eq=False)
class Evidence:
    """What the checks need of one deployment's records; by partition, unless stated otherwise."""

    recounts: dict[int, Recount] = field(default_factory=dict)
    """The actions, applied again."""
    ledgers: dict[int, SequenceLedger] = field(default_factory=dict)
    """The examples."""
    sequences_id: str = ""
    """The broker's id of the topic that holds them."""
    cut: str = ""
    """What was removed from the start of its partitions, in words."""
    plans: PlanLedger = field(default_factory=PlanLedger)
    """The steps of the published versions."""
    statuses: dict[int, PartitionStatus] = field(default_factory=dict)
    """What the workers last reported."""
    ends: dict[int, int] = field(default_factory=dict)
    """Where the actions end."""
    whole: set[int] = field(default_factory=set)
    """Partitions that still hold their first action."""
    dead: set[tuple[int, int, int]] = field(default_factory=set)
    """The dead letters: (partition, offset, index) of each refused action."""
    refused_before: set[tuple[int, int, int]] = field(default_factory=set)
    """The dead letters that an earlier configuration may have caused (`reasons_before`)."""
    shapes: list[Shape] = field(default_factory=list)
    """The configurations stated in the workers' fences."""
    now: Shape | None = None
    """The configuration that the audit uses."""
    num_in_added: int = 0
    """Records in partitions of the actions topic that were added to it."""
    dead_before: int = 0
    """How many dead letters retention has removed."""
    dropped: Violations = field(default_factory=Violations)
    """Versions of the weights that readers ignore."""
    unread: Violations = field(default_factory=Violations)
    """Examples of a layout that cannot be read."""
    num_foreign: int = 0
    """Records in their topic that are not examples."""

    def report(self) -> Report:
        """All checks."""
        checks = [self.nothing_lost(), self.dead_letters(), self.numbers(), self.delivered_once(), self.content()]
        trained_check, sums = self.trained_once()
        return Report([*checks, trained_check], sums)

    @property
    def num_partitions(self) -> int:
        """Of the deployment, as its workers say; 0 if none has said it."""
        return int(max((shape.rules.get(PARTITIONS, 0) for shape in self.shapes), default=0))

    def reasons_before(self, now: Shape) -> set[str]:
        """Reasons for which earlier workers may have refused what the present configuration accepts: they knew fewer
        kinds, or had other limits. Such a dead letter is correct, and its action counts as refused."""
        self.now, found = now, set[str]()
        for shape in self.shapes:
            found |= {"unknown_action"} if shape.kinds != now.kinds else set()
            found |= {REASON_OF[key] for key in shape.changed(now) if key in REASON_OF}
        return found

    def _rules_before(self) -> str:
        """Rules of joining that earlier workers had, by which this audit does not count."""
        if self.now is None:
            return ""
        rules = {
            f"{key} was {was:g} before and is {now:g}"
            for shape in self.shapes
            for key, (was, now) in shape.changed(self.now).items()
            if key in ("sequence.join_window_s", "sequence.deduplicate")
        }
        return f"; {', '.join(sorted(rules))}: audit with the workers' former settings" if rules else ""

    def _num_actions(self) -> tuple[int, int]:
        """How many offsets of the actions topic could be recounted, and how many there ever were."""
        return sum(self.ends[number] for number in self.whole), sum(self.ends.values())

    def nothing_lost(self) -> Check:
        """Accepted + duplicate + dead-lettered = produced, and the workers say the same."""
        sums = np.zeros(3, np.int64)
        violations = Violations()
        produced = 0
        for number, recount in self.recounts.items():
            counts = recount.sequencer.counts
            sums += (counts.num_accepted, counts.num_duplicate, counts.num_dead)
            produced += recount.num_produced
            status = self.statuses.get(number)
            expected = None if status is None else recount.counts_at.get(status.applied_offset)
            if status is not None and expected is not None:
                reported = (status.num_accepted, status.num_duplicate, status.num_dead)
                wanted = (expected.num_accepted, expected.num_duplicate, expected.num_dead)
                # A store that is being restored adopts counts that its applied offset has not reached yet.
                restoring = sum(reported) > sum(wanted) and not self._settled(number)
                if reported != wanted and not restoring:
                    violations.add(
                        f"partition {number}, up to offset {status.applied_offset}: expected accepted, duplicate, dead "
                        f"= {wanted}, the worker counted {reported}"
                    )
        for number, status in self.statuses.items():
            if status.num_gone:
                violations.add(
                    f"partition {number}: {status.num_gone:,} records of the actions topic were removed before the "
                    "worker read them"
                )
        if self.num_in_added:
            violations.add(
                f"{self.num_in_added:,} records are in partitions that were added to the actions topic: nobody takes "
                "them, and headrace repartition sends them to the topics that continue these"
            )
        accepted, duplicate, dead = (int(each) for each in sums)
        if accepted + duplicate + dead != produced:
            violations.add(
                f"{accepted} accepted + {duplicate} duplicate + {dead} dead letters are not {produced} produced"
            )
        found = f"{accepted:,} accepted + {duplicate:,} duplicate + {dead:,} dead-lettered = {produced:,} produced"
        return Check("nothing is lost", found, *self._num_actions(), violations)

    def dead_letters(self) -> Check:
        """Each action that had to be refused is in the dead letters, and nothing else is."""
        violations = Violations()
        wanted = {(number, *place) for number, recount in self.recounts.items() for place in recount.dead}
        late = 0
        if not self.dead_before:
            for number, offset, index in sorted(wanted - self.dead):
                status = self.statuses.get(number)
                # A worker that has just begun has not reported yet.
                if status is None or offset > status.applied_offset or status.outbox_len > 0:
                    late += 1
                else:
                    violations.add(
                        f"partition {number}, offset {offset}, index {index}: should be a dead letter, but is not"
                    )
        for number, offset, index in sorted(self.dead - wanted):
            if number in self.whole and offset < self.ends[number]:
                violations.add(f"partition {number}, offset {offset}, index {index}: is a dead letter, should not be")
        found = f"{len(self.dead):,} dead letters" + (f", {late:,} on their way" if late else "")
        if before := sum(recount.num_refused_before for recount in self.recounts.values()):
            found += f", {before:,} of them by an earlier configuration: headrace dead-letters --resend"
        share = 0 if self.dead_before else len(wanted)
        return Check("dead letters are complete", found, share, len(wanted), violations)

    def numbers(self) -> Check:
        """The examples' numbers have no gaps."""
        violations = Violations()
        if self.cut:
            violations.add(self.cut)
        for number, ledger in self.ledgers.items():
            _take(violations, ledger.lost)
            status, last = self.statuses.get(number), ledger.log.last_number
            if status is not None and status.relayed_number > last:
                violations.add(
                    f"partition {number}: the broker acknowledged examples up to {status.relayed_number}, its topic "
                    f"ends with {last}"
                )
        _take(violations, self.unread)
        held = sum(len(ledger.pieces) for ledger in self.ledgers.values())
        gone = sum(ledger.num_missing for ledger in self.ledgers.values())
        doubled = sum(ledger.num_duplicates for ledger in self.ledgers.values())
        stale = sum(ledger.num_stale for ledger in self.ledgers.values())
        found = f"{held:,} examples; ignored: {doubled:,} repeated, {stale:,} of fenced writers"
        found += f", {self.num_foreign:,} not examples" if self.num_foreign else ""
        return Check("no example is missing", found, held, held + gone, violations)

    def delivered_once(self) -> Check:
        """Each interaction and each later kind is in exactly one example."""
        violations = Violations()
        users = [user for ledger in self.ledgers.values() for user in ledger.users.values()]
        for ledger in self.ledgers.values():
            _take(violations, ledger.not_once)
        num = sum(user.num for user in users) + sum(ledger.num_forgotten for ledger in self.ledgers.values())
        num -= sum(recount.num_migrated for recount in self.recounts.values())
        seen = sum(ledger.num_interactions for ledger in self.ledgers.values())
        later = sum(ledger.num_feedback for ledger in self.ledgers.values())
        found = f"{num:,} interactions of {len(users):,} users, and later kinds to {later:,} of them"
        return Check("each piece is delivered once", found, seen, max(num, seen), violations)

    def content(self) -> Check:
        """Each user's sequence is what their actions say, in order."""
        violations = Violations()
        checked = total = waiting = 0
        for number, recount in self.recounts.items():
            ledger, settled = self.ledgers[number], self._settled(number)
            _take(violations, recount.wrong_times)
            total += recount.num_interactions - recount.num_forgotten
            # The mark may not have reached the topic yet.
            unsure = set() if settled else recount.forgotten
            for name, expected in recount.users.items():
                if name in unsure:
                    continue
                user = ledger.users.get(name)
                delivered = user.num if user else 0
                where = f"partition {number}, user {name!r}"
                due = expected.end if settled else (recount.due or {}).get(name, 0)
                waiting += max(0, expected.end - max(delivered, due))
                if user is not None:
                    if absent := num_absent(user.history, recount.sequence):
                        violations.add(f"{where}: {absent} of the interactions that are kept are not there")
                    checked += min(delivered, expected.end)
                    then = expected if settled else recount.users_at.get(name)
                    if wrong := ledger.wrong_content(user, then, recount.sequence):
                        violations.add(f"{where}: {wrong}")
                if due > delivered:
                    violations.add(f"{where}: {due - delivered} interactions never arrived")
            for name in ledger.users.keys() - recount.users.keys() - unsure:
                violations.add(f"partition {number}, user {name!r}: has examples, but no accepted action")
        found = f"{checked:,} interactions equal what the actions say" + (
            f", {waiting:,} on their way" if waiting else ""
        )
        first, every = self._num_actions()
        found += self._rules_before() if violations.num else ""
        return Check("order and content", found, checked * first, max(total - waiting, checked) * every, violations)

    def _settled(self, partition: int) -> bool:
        """Whether the worker had applied and relayed everything before the audit began."""
        status = self.statuses.get(partition)
        return status is not None and status.outbox_len == 0 and status.applied_offset >= self.ends[partition] - 1

    def trained_once(self) -> tuple[Check, dict[str, int]]:
        """Each piece is in exactly one step of the newest weights' lineage; also the totals over all topics."""
        violations = Violations()
        line, manifest = self.plans.current, self.plans.newest
        learned_from = manifest.source.get(TOPIC_ID, "") if manifest is not None else ""
        if learned_from and self.sequences_id and learned_from != self.sequences_id:  # first: it explains the rest
            violations.add(
                f"the weights were learned from the sequences topic with id {learned_from}, the present one "
                f"has id {self.sequences_id}: it was deleted and created again"
            )
        _take(violations, self.plans.gaps)
        _take(violations, self.plans.changes)
        found = trained(line, self.ledgers, violations)
        num = sum(each.num_interactions for each in found.values())
        num_feedback = sum(each.num_feedback for each in found.values())
        num_set_aside = sum(each.num_set_aside for each in found.values())
        available = sum(ledger.num_interactions for ledger in self.ledgers.values())
        if manifest is not None:
            compare(manifest, line, found, self.ledgers, violations)
        newest = "no version" if manifest is None else f"version {manifest.epoch}/{manifest.number}"
        text = f"{num:,} interactions and {num_feedback:,} later pieces in {len(line.steps):,} steps of {newest}"
        waiting = num_waiting(manifest, found, self.ledgers)
        text += f", {num_set_aside:,} in steps that were set aside" if num_set_aside else ""
        text += f", {waiting:,} on their way" if waiting else ""
        accepted = sum(recount.sequencer.num_accepted for recount in self.recounts.values())
        sums = {
            "num_produced": sum(recount.num_produced for recount in self.recounts.values()),
            "num_accepted": accepted,
            "num_duplicate": sum(recount.sequencer.num_duplicate for recount in self.recounts.values()),
            "num_dead": sum(recount.sequencer.num_dead for recount in self.recounts.values()),
            "num_dead_letters": len(self.dead),
            "num_interactions": sum(recount.num_interactions for recount in self.recounts.values()),
            "num_delivered": available,
            "num_trained": num,
            "num_set_aside": num_set_aside,
            "num_feedback_delivered": sum(ledger.num_feedback for ledger in self.ledgers.values()),
            "num_feedback_trained": num_feedback,
            "num_versions": self.plans.num_versions,
            "num_dropped_versions": self.dropped.num,
            "num_repeated_steps": line.num_repeated,
        }
        return Check(
            "each piece is trained once", text, len(line.steps), line.first_step + len(line.steps), violations
        ), sums


def _take(violations: Violations, more: Violations) -> None:
    for each in more:
        violations.append(each)
    violations.num += more.num
