"""The audit: count again, from the topics alone, that the promises held.

1. Nothing is lost: accepted + duplicate + dead-lettered = produced, and each dead letter is there.
2. Order and content: what the examples delivered of each user is what the actions say, in that order, without holes.
3. Trained exactly once: each interaction, and each kind that came to one later, is told by one example; and the steps
   of the published weights' lineage name each example once, in order.

It works on any deployment, running or not: what is on its way is counted as such, and what retention or compaction has
taken is left out; the report says which share could be checked.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from kafka import KafkaConsumer
from rich.console import Console

from headrace.config import Settings
from headrace.ledger import PlanLedger, SequenceLedger, Violations, differences, trained
from headrace.recount import Recount
from headrace.report import Check, Report, print_report
from wire.cluster import ClusterState
from wire.errors import CodecError
from wire.example_codec import decode_example
from wire.kafka.consumer import connect, read, spans
from wire.status import PartitionStatus
from wire.topics import Topics
from wire.weights import VersionAssembler


class Audit:
    """Reads the topics from the last stage to the first, so that what a later one names is in the earlier ones."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics = Topics.under(settings.kafka.prefix)
        self.consumer: KafkaConsumer = connect(settings.kafka)
        self.plans = PlanLedger()
        self.dropped = Violations()
        self.ledgers: dict[int, SequenceLedger] = {}
        self.recounts: dict[int, Recount] = {}
        self.statuses: dict[int, PartitionStatus] = {}
        self.dead: set[tuple[int, int, int]] = set()
        self.dead_before = 0
        self.unread = Violations()
        self.whole: set[int] = set()
        """Partitions whose actions are there from the first record on."""
        self.ends: dict[int, int] = {}

    def run(self) -> Report:
        """Read everything, then compare."""
        try:
            self._read_statuses()
            self._read_weights()
            self._read_sequences()
            self._read_dead_letters()
            self._read_actions()
        finally:
            self.consumer.close()
        checks = [self._nothing_lost(), self._dead_letters(), self._numbers(), self._telling(), self._content()]
        trained_check, sums = self._trained_once()
        return Report([*checks, trained_check], sums)

    # Reading

    def _records(self, topic: str) -> Any:
        return read(self.consumer, topic, spans(self.consumer, topic))

    def _read_statuses(self) -> None:
        cluster = ClusterState()
        for record in self._records(self.topics.status):
            cluster.note(record.value)
        self.statuses = {number: each for number, each in cluster.workers.items() if each.applied_offset >= 0}

    def _read_weights(self) -> None:
        assembler = VersionAssembler(on_drop=self.dropped.add)
        for record in self._records(self.topics.weights):
            version = assembler.feed(record.key, record.headers, record.value)
            if version is not None:
                self.plans.feed(version.manifest)

    def _read_sequences(self) -> None:
        held = spans(self.consumer, self.topics.sequences)
        self.ledgers = {number: SequenceLedger(number, span.first) for number, span in held.items()}
        for record in read(self.consumer, self.topics.sequences, held):
            if record.value is None:
                continue
            try:
                self.ledgers[record.partition].feed(record.offset, decode_example(record.value))
            except CodecError as error:
                self.unread.add(f"partition {record.partition}, offset {record.offset}: {error}")

    def _read_dead_letters(self) -> None:
        held = spans(self.consumer, self.topics.dead_letters)
        self.dead_before = sum(span.first for span in held.values())
        for record in read(self.consumer, self.topics.dead_letters, held):
            headers = {name: value.decode() for name, value in record.headers}
            if headers.get("topic") == self.topics.actions:
                self.dead.add((int(headers["partition"]), int(headers["offset"]), int(headers["index"])))

    def _read_actions(self) -> None:
        held = spans(self.consumer, self.topics.actions)
        self.ends = {number: span.end for number, span in held.items()}
        self.whole = {number for number, span in held.items() if span.first == 0}
        for number in self.whole:
            recount = Recount(self.settings.action, self.settings.sequence, number, len(held))
            status, last = self.statuses.get(number), self.ledgers[number].last
            recount.watch = {status.applied_offset} if status else set()
            recount.watch |= {last.applied_offset} if last else set()
            recount.watch_users = {name: user.upto for name, user in self.ledgers[number].users.items()}
            self.recounts[number] = recount
        for record in read(self.consumer, self.topics.actions, {number: held[number] for number in self.whole}):
            self.recounts[record.partition].feed(record)
        for recount in self.recounts.values():
            recount.drain()

    # Comparing

    def _num_actions(self) -> tuple[int, int]:
        """Offsets of the actions topic that could be replayed, and all that there ever were."""
        return sum(self.ends[number] for number in self.whole), sum(self.ends.values())

    def _nothing_lost(self) -> Check:
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
                told = (status.num_accepted, status.num_duplicate, status.num_dead)
                wanted = (expected.num_accepted, expected.num_duplicate, expected.num_dead)
                # A store that is being restored takes over counts that its replay has yet to catch up with.
                restoring = sum(told) > sum(wanted) and not self._settled(number)
                if told != wanted and not restoring:
                    violations.add(
                        f"partition {number}, up to offset {status.applied_offset}: expected accepted, duplicate, dead "
                        f"= {wanted}, the worker counted {told}"
                    )
        accepted, duplicate, dead = (int(each) for each in sums)
        if accepted + duplicate + dead != produced:
            violations.add(
                f"{accepted} accepted + {duplicate} duplicate + {dead} dead letters are not {produced} produced"
            )
        found = f"{accepted:,} accepted + {duplicate:,} duplicate + {dead:,} dead-lettered = {produced:,} produced"
        return Check("nothing is lost", found, *self._num_actions(), violations)

    def _dead_letters(self) -> Check:
        violations = Violations()
        wanted = {(number, *place) for number, recount in self.recounts.items() for place in recount.dead}
        late = 0
        if not self.dead_before:
            for number, offset, index in sorted(wanted - self.dead):
                status = self.statuses.get(number)
                if status is not None and (offset > status.applied_offset or status.outbox_len > 0):
                    late += 1
                else:
                    violations.add(
                        f"partition {number}, offset {offset}, index {index}: should be a dead letter, is not"
                    )
        for number, offset, index in sorted(self.dead - wanted):
            if number in self.whole and offset < self.ends[number]:
                violations.add(f"partition {number}, offset {offset}, index {index}: is a dead letter, should not be")
        found = f"{len(self.dead):,} dead letters" + (f", {late:,} on their way" if late else "")
        share = 0 if self.dead_before else len(wanted)
        return Check("dead letters are complete", found, share, len(wanted), violations)

    def _numbers(self) -> Check:
        violations = Violations()
        for ledger in self.ledgers.values():
            _take(violations, ledger.holes)
        _take(violations, self.unread)
        held = sum(len(ledger.pieces) for ledger in self.ledgers.values())
        gone = sum(ledger.num_missing for ledger in self.ledgers.values())
        doubled = sum(ledger.num_duplicates for ledger in self.ledgers.values())
        stale = sum(ledger.num_stale for ledger in self.ledgers.values())
        found = f"{held:,} examples; left aside: {doubled:,} repeated, {stale:,} of fenced writers"
        return Check("examples have no holes", found, held, held + gone, violations)

    def _telling(self) -> Check:
        violations = Violations()
        users = [user for ledger in self.ledgers.values() for user in ledger.users.values()]
        for ledger in self.ledgers.values():
            _take(violations, ledger.telling)
        num = sum(user.num for user in users)
        seen = sum(ledger.num_interactions for ledger in self.ledgers.values())
        later = sum(ledger.num_feedback for ledger in self.ledgers.values())
        found = f"{num:,} interactions of {len(users):,} users, and later kinds to {later:,} of them"
        return Check("each piece is told once", found, seen, max(num, seen), violations)

    def _content(self) -> Check:
        violations = Violations()
        checked = total = waiting = 0
        for number, recount in self.recounts.items():
            ledger, settled = self.ledgers[number], self._settled(number)
            total += recount.num_interactions
            for name, expected in recount.users.items():
                user = ledger.users.get(name)
                delivered = user.num if user else 0
                where = f"partition {number}, user {name!r}"
                missing = expected.end - delivered
                waiting += max(0, missing)
                if user is not None:
                    checked += min(delivered, expected.end)
                    wrong = differences(expected if settled else recount.users_at.get(name), user.history)
                    if wrong:
                        violations.add(f"{where}: {wrong}")
                if missing > 0 and settled:
                    violations.add(f"{where}: {missing} interactions never came")
            for name in ledger.users.keys() - recount.users.keys():
                violations.add(f"partition {number}, user {name!r}: has examples, but no action that was accepted")
        found = f"{checked:,} interactions equal what the actions say" + (
            f", {waiting:,} on their way" if waiting else ""
        )
        first, every = self._num_actions()
        return Check("order and content", found, checked * first, max(total - waiting, checked) * every, violations)

    def _settled(self, partition: int) -> bool:
        """Whether the worker had applied and relayed everything before the audit began."""
        status = self.statuses.get(partition)
        return status is not None and status.outbox_len == 0 and status.applied_offset >= self.ends[partition] - 1

    def _trained_once(self) -> tuple[Check, dict[str, int]]:
        violations = Violations()
        _take(violations, self.plans.gaps)
        _take(violations, self.plans.changes)
        line, manifest = self.plans.current, self.plans.newest
        found = trained(line, self.ledgers, violations)
        num = sum(each.num_interactions for each in found.values())
        num_feedback = sum(each.num_feedback for each in found.values())
        available = sum(ledger.num_interactions for ledger in self.ledgers.values())
        if manifest is not None:
            for partition, last in manifest.covered.items():
                reached = found[partition].last if partition in found else -1
                if last != reached:
                    violations.add(f"partition {partition}: the steps end with {reached}, the manifest says {last}")
            whole = line.first_step == 0 and not any(ledger.num_missing for ledger in self.ledgers.values())
            told = manifest.num_interactions, manifest.num_feedback
            if whole and told != (num, num_feedback):
                violations.add(
                    f"the steps train {num} interactions and {num_feedback} pieces of later feedback, the manifest "
                    f"says {told[0]} and {told[1]}"
                )
        newest = "no version" if manifest is None else f"version {manifest.epoch}/{manifest.number}"
        text = f"{num:,} interactions and {num_feedback:,} later pieces in {len(line.steps):,} steps of {newest}"
        text += f", {available - num:,} on their way" if available > num else ""
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


def audit(settings: Settings) -> Report:
    """Recount a deployment. Raises `BrokerUnavailable` or `TopicMissing`."""
    return Audit(settings).run()


def show(settings: Settings, *, as_json: bool = False) -> int:
    """Print the report; exit status 1 on any violation."""
    report = audit(settings)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        print_report(report, Console())
    return 0 if report.passed else 1
