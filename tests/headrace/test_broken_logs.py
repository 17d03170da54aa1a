"""Logs that are broken on purpose: the audit names each loss, and accuses no log of what compaction, kills, repeats and
retention do to a sound one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import headrace.audit
from headrace import recount
from headrace.audit import Reader
from headrace.config import Settings
from headrace.evidence import Evidence
from headrace.ledger import SequenceLedger, UserLedger, differences
from headrace.report import Report
from state.store import PartitionStore
from stream.simulate import World, WorldConfig
from tests.headrace.test_ledger import manifest
from wire.config import SequenceConfig
from wire.example import Example, fence
from wire.example_codec import decode_example, encode_example
from wire.history import History
from wire.kafka.consumer import Span
from wire.status import PartitionStatus, WorkerStatus, encode_status
from wire.topics import Topics, fence_key

NOW_MS = 1_760_000_000_000
KINDS = ("impression", "click", "like")
SECTIONS: dict[str, Any] = {
    "action": {"kinds": KINDS}, "sequence": {"max_context": 8, "segment_len": 4, "join_window_s": 20.0},
}  # fmt: skip
SETTINGS = Settings(**SECTIONS)
TOPICS = Topics.under()
FORGOTTEN = "u3"


@dataclass(frozen=True)
class Record:
    """A Kafka record."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    timestamp: int = 0
    partition: int = 0


@dataclass
class Logs:
    """The topics, one partition each; offsets may be missing. ``first``: where a topic begins now."""

    records: dict[str, list[Record]]
    status: PartitionStatus | None
    first: dict[str, int] = field(default_factory=dict)

    @property
    def examples(self) -> list[Record]:
        return self.records[TOPICS.sequences]

    @examples.setter
    def examples(self, records: Iterable[Record]) -> None:
        self.records[TOPICS.sequences] = list(records)

    def rewrite(self, values: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Write the sequences anew, without gaps in the offsets."""
        self.examples = [Record(offset, key, value) for offset, (key, value) in enumerate(values)]

    @property
    def pairs(self) -> list[tuple[bytes | None, bytes | None]]:
        return [(each.key, each.value) for each in self.examples]

    def spans(self, _consumer: Any, topic: str) -> dict[int, Span]:
        held = self.records.get(topic, [])
        first = self.first.get(topic, 0)
        return {0: Span(first, held[-1].offset + 1 if held else first)}

    def read(self, _consumer: Any, topic: str, wanted: Mapping[int, Span]) -> Iterator[Record]:
        span = wanted.get(0, Span(0, 0))
        return (each for each in self.records.get(topic, []) if span.first <= each.offset < span.end)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """What a worker makes of 700 actions; a user is forgotten in the middle."""
    config = WorldConfig(seed=3, num_users=12, num_items=30, kinds=KINDS, actions_per_s=20.0)
    return logs_of(tmp_path_factory.mktemp("store"), config)


def logs_of(folder: Path, config: WorldConfig) -> Logs:
    """What a worker makes of 700 actions in small batches."""
    values = [msgspec.json.encode(each) for each, _ in zip(World(config).actions(), range(700), strict=False)]
    values.insert(400, msgspec.json.encode({"forget": True, "user": FORGOTTEN}))
    values.insert(500, b"{")
    actions = [Record(number, b"", value, [], NOW_MS + 10 * number) for number, value in enumerate(values)]
    examples, letters = list[tuple[bytes | None, bytes | None]](), list[Record]()
    store = PartitionStore.open(folder, 0, SETTINGS.action, SETTINGS.sequence, num_partitions=1, topic=TOPICS.actions)
    for first in range(0, len(actions), 5):
        store.apply((each.offset, each.timestamp, each.key, each.value) for each in actions[first : first + 5])
        for entry in store.outbox(limit=10_000):
            if entry.is_example:
                examples.append((entry.key, entry.value))
            else:
                letters.append(Record(len(letters), entry.key, entry.value, entry.headers))
            store.ack(entry.index)
    status = store.status()
    store.close()
    logs = Logs({TOPICS.actions: actions, TOPICS.dead_letters: letters, TOPICS.sequences: []}, status)
    logs.rewrite(examples)
    return logs


def judge(logs: Logs, monkeypatch: pytest.MonkeyPatch, evidence: Callable[[Evidence], None] | None = None) -> Report:
    if logs.status is not None:
        status = WorkerStatus(component="w", time_ms=NOW_MS, partitions={0: logs.status})
        logs.records[TOPICS.status] = [Record(0, b"w", encode_status(status))]
    monkeypatch.setattr(headrace.audit, "read", logs.read)
    monkeypatch.setattr(headrace.audit, "spans", logs.spans)
    monkeypatch.setattr(headrace.audit, "topic_id_of", lambda *_: "")
    monkeypatch.setattr(headrace.audit, "migration_to", lambda _: None)
    consumer: Any = None
    found = Reader(SETTINGS, consumer).read()
    if evidence is not None:
        evidence(found)
    return found.report()


def noticed(report: Report) -> str:
    return "\n".join(f"{each.name}: {words}" for each in report.checks for words in each.violations)


def changed(value: bytes | None, **fields: Any) -> bytes:
    assert value is not None
    return encode_example(replace(decode_example(value), **fields))


def example_at(logs: Logs, where: int) -> Example:
    value = logs.examples[where].value
    assert value is not None
    return decode_example(value)


def compacted(logs: Logs, *, keeps_tombstones: bool = True) -> None:
    """Each key's last record, at its offset."""
    last = {each.key: each.offset for each in logs.examples}
    kept = [each for each in logs.examples if last[each.key] == each.offset]
    logs.examples = [each for each in kept if keeps_tombstones or each.value is not None]


def teaching(logs: Logs, after: int) -> int:
    """The place of an example that has a new interaction, in the middle of the log, with its segment's state in no
    later one."""
    places = {each.key: place for place, each in enumerate(logs.examples)}
    return next(
        place
        for place in range(after, len(logs.examples))
        if logs.examples[place].value is not None
        and example_at(logs, place).num_new
        and places[logs.examples[place].key] == place
    )


# Sound logs


def as_it_is(logs: Logs) -> None: ...


def is_compacted(logs: Logs) -> None:
    compacted(logs)


def is_compacted_without_tombstones(logs: Logs) -> None:
    compacted(logs, keeps_tombstones=False)


def is_compacted_in_part(logs: Logs) -> None:
    recent = logs.examples[-60:]
    logs.examples = logs.examples[:-60]
    compacted(logs)
    logs.examples = [*logs.examples, *recent]


def has_repeats(logs: Logs) -> None:
    logs.rewrite([*logs.pairs[:90], *logs.pairs[80:]])


def has_a_fenced_writer(logs: Logs) -> None:
    """A worker has lost the partition and does not know it."""
    higher = [(key, changed(value, writer_epoch=2) if value else None) for key, value in logs.pairs[100:]]
    stale = [(key, changed(value, writer_epoch=1) if value else None) for key, value in logs.pairs[100:110]]
    new = (fence_key(2), encode_example(fence(0, 2)))
    logs.rewrite([*logs.pairs[:100], new, *stale, *higher])


def has_foreign_records(logs: Logs) -> None:
    logs.rewrite([*logs.pairs[:50], (b"x", b"foreign"), (None, None), *logs.pairs[50:]])


def has_lost_old_actions(logs: Logs) -> None:
    """To retention, after they were applied."""
    logs.first[TOPICS.actions] = 300


def is_behind(logs: Logs) -> None:
    """The worker has not sent what is last."""
    logs.examples = logs.examples[:-20]
    assert logs.status is not None
    logs.status = msgspec.structs.replace(
        logs.status, outbox_len=20, relayed_number=example_at(logs, len(logs.examples) - 1).number
    )


def has_no_worker(logs: Logs) -> None:
    """The worker is gone, with its report and what was last in its outbox."""
    logs.examples, logs.status = logs.examples[:-20], None


SOUND = [
    as_it_is, is_compacted, is_compacted_without_tombstones, is_compacted_in_part, has_repeats, has_a_fenced_writer,
    has_foreign_records, has_lost_old_actions, is_behind, has_no_worker,
]  # fmt: skip


@pytest.mark.parametrize("what", SOUND, ids=lambda each: each.__name__)
def test_a_sound_log_is_not_accused(what: Callable[[Logs], None], made: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = copy.deepcopy(made)
    what(logs)
    report = judge(logs, monkeypatch)
    assert report.passed, noticed(report)
    assert report.sums["num_delivered"] > 20


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """A log of which many examples are of late kinds."""
    config = WorldConfig(seed=1, num_users=12, num_items=30, kinds=KINDS, actions_per_s=20.0, late_share=0.3)
    return logs_of(tmp_path_factory.mktemp("store"), config)


@pytest.mark.parametrize("num_compacted", [150, 300, 450])
def test_what_compaction_left_in_an_earlier_state_is_not_accused(
    num_compacted: int, late: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment's last record was removed when its key was used again; one before it, under another key, was not."""
    logs = copy.deepcopy(late)
    recent, logs.examples = logs.examples[num_compacted:], logs.examples[:num_compacted]
    compacted(logs)
    logs.examples = [*logs.examples, *recent]
    report = judge(logs, monkeypatch)
    assert report.passed, noticed(report)
    monkeypatch.setattr(SequenceLedger, "wrong_content", whole_content)
    assert not judge(logs, monkeypatch).passed, "a build that compares everything is caught"


def whole_content(_: SequenceLedger, user: UserLedger, expected: History | None, _sequence: SequenceConfig) -> str:
    return differences(expected, user.history, 0)


# Broken logs


def lacks_one(logs: Logs) -> None:
    logs.rewrite([*logs.pairs[:100], *logs.pairs[101:]])


def lacks_the_last(logs: Logs) -> None:
    place = max(place for place, each in enumerate(logs.examples) if each.value and example_at(logs, place).num_new)
    logs.rewrite(logs.pairs[:place])


def lacks_one_behind_a_tombstone(logs: Logs) -> None:
    place = teaching(logs, 100)
    logs.rewrite([*logs.pairs[:place], (b"some key", None), *logs.pairs[place + 1 :]])


def lacks_one_behind_its_own_tombstones(logs: Logs) -> None:
    place = next(place for place, (_, value) in enumerate(logs.pairs) if value is None)
    while logs.pairs[place][1] is None:
        place += 1
    logs.rewrite([*logs.pairs[:place], *logs.pairs[place + 1 :]])


def lacks_one_behind_a_foreign_record(logs: Logs) -> None:
    place = teaching(logs, 100)
    logs.rewrite([*logs.pairs[:place], (b"x", b"foreign"), *logs.pairs[place + 1 :]])


def lacks_one_behind_a_compacted_one(logs: Logs) -> None:
    """Two numbers are missing where one record can have been."""
    place = teaching(logs, 100)
    kept = logs.pairs[: place - 1] + logs.pairs[place + 1 :]
    logs.rewrite(kept)
    logs.examples = [
        replace(each, offset=each.offset + (number >= place - 1)) for number, each in enumerate(logs.examples)
    ]


def lacks_what_compaction_keeps(logs: Logs) -> None:
    """The record of the segment before a user's last one."""
    compacted(logs)
    examples = {place: example_at(logs, place) for place, each in enumerate(logs.examples) if each.value}
    last = {each.user: each.segment for each in examples.values() if each.mark is None}
    gone = next(
        place
        for place, each in examples.items()
        if len(each.rows) == each.segment_len and each.segment == last[each.user] - 1
    )
    logs.examples = [each for number, each in enumerate(logs.examples) if number != gone]


def has_another_item_long_ago(logs: Logs) -> None:
    """In the last record of a segment that is no longer kept."""
    examples = {place: example_at(logs, place) for place, each in enumerate(logs.examples) if each.value}
    end = {each.user: each.segment for each in examples.values()}
    last = {(each.user, each.segment): place for place, each in examples.items()}
    place = next(place for (user, segment), place in last.items() if segment < end[user] - 5 and user != FORGOTTEN)
    rows = examples[place].rows.copy()
    rows["item"] += 1
    key, value = logs.pairs[place]
    logs.rewrite([*logs.pairs[:place], (key, changed(value, rows=rows)), *logs.pairs[place + 1 :]])


def lacks_its_start(logs: Logs) -> None:
    logs.first[TOPICS.sequences] = 5
    logs.examples = logs.examples[5:]


def lacks_its_end(logs: Logs) -> None:
    """The broker had acknowledged it; what is in it taught nothing that could be missed."""
    logs.status = msgspec.structs.replace(logs.status, relayed_number=logs.status.relayed_number + 1)  # type: ignore[union-attr]


def lacks_actions_that_nobody_has_read(logs: Logs) -> None:
    logs.first[TOPICS.actions] = 300
    logs.status = msgspec.structs.replace(logs.status, num_gone=7)  # type: ignore[union-attr]


def has_one_under_two_numbers(logs: Logs) -> None:
    place = teaching(logs, 100)
    later = [
        (key, changed(value, number=decode_example(value).number + 1) if value else None)
        for key, value in logs.pairs[place:]
    ]
    logs.rewrite([*logs.pairs[: place + 1], *later])


def has_two_swapped(logs: Logs) -> None:
    pairs = logs.pairs
    place = teaching(logs, 100)
    pairs[place], pairs[place + 1] = pairs[place + 1], pairs[place]
    logs.rewrite(pairs)


def has_a_foreign_epoch(logs: Logs) -> None:
    """Somebody writes under a higher epoch without a fence, and hides all that the worker writes."""
    key, value = logs.pairs[100]
    logs.rewrite([*logs.pairs[:100], (key, changed(value, writer_epoch=9)), *logs.pairs[101:]])


def states_a_later_time(logs: Logs) -> None:
    place = teaching(logs, 100)
    key, value = logs.pairs[place]
    later = changed(value, newest_record_ms=example_at(logs, place).newest_record_ms + 60_000)
    logs.rewrite([*logs.pairs[:place], (key, later), *logs.pairs[place + 1 :]])


def states_an_earlier_time(logs: Logs) -> None:
    place = teaching(logs, 100)
    key, value = logs.pairs[place]
    logs.rewrite([*logs.pairs[:place], (key, changed(value, newest_record_ms=1)), *logs.pairs[place + 1 :]])


def never_had_one(logs: Logs) -> None:
    """A worker that skipped an example, and is still running: the others go on under the next numbers."""
    place = teaching(logs, 100)
    later = [
        (key, changed(value, number=decode_example(value).number - 1) if value else None)
        for key, value in logs.pairs[place + 1 :]
    ]
    logs.rewrite([*logs.pairs[:place], *later])
    logs.status = None


BROKEN: dict[Callable[[Logs], None], str] = {
    lacks_one: "no example is missing: partition 0: expected example ",
    lacks_the_last: "never arrived",
    lacks_one_behind_a_tombstone: "no example is missing: partition 0: expected example ",
    lacks_one_behind_its_own_tombstones: "no example is missing: partition 0: expected example ",
    lacks_one_behind_a_foreign_record: "no example is missing: partition 0: expected example ",
    lacks_one_behind_a_compacted_one: "of which compaction can have removed 1",
    lacks_what_compaction_keeps: "of the interactions that are kept are not there",
    has_another_item_long_ago: "was delivered with a item that differs from the actions'",
    lacks_its_start: "partition 0 begins at 5, not 0",
    lacks_its_end: "no example is missing: partition 0: the broker acknowledged examples up to",
    lacks_actions_that_nobody_has_read: "7 records of the actions topic were removed before the worker read them",
    has_one_under_two_numbers: "each piece is delivered once: ",
    has_two_swapped: "no example is missing: partition 0: expected example ",
    has_a_foreign_epoch: "never arrived",
    states_a_later_time: "order and content: partition 0: an example says that its newest action",
    states_an_earlier_time: "order and content: partition 0: an example says that its newest action",
    never_had_one: "each piece is delivered once: ",
}


@pytest.mark.parametrize("what", BROKEN, ids=lambda each: each.__name__)
def test_a_broken_log_is_named(what: Callable[[Logs], None], made: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = copy.deepcopy(made)
    what(logs)
    report = judge(logs, monkeypatch)
    assert BROKEN[what] in noticed(report), noticed(report) or "nothing noticed"


def test_what_a_live_worker_says_that_it_has_delivered_is_missed(made: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's only example never came, and the worker is not idle, so its report says nothing."""
    logs = copy.deepcopy(made)
    only = {"user": "once", "item": 1, "action": "click", "timestamp": NOW_MS}
    actions = logs.records[TOPICS.actions]
    actions[100] = replace(actions[100], value=msgspec.json.encode(only))
    logs.status = None
    assert "user 'once': 1 interactions never arrived" in noticed(judge(logs, monkeypatch))


def all_is_compaction(self: SequenceLedger, expected: int, got: int) -> None:
    self.num_missing += got - expected
    self._gaps += 1


@pytest.mark.parametrize(
    ("module", "name", "broken", "what"),
    [
        (SequenceLedger, "_note_gap", all_is_compaction, lacks_one_behind_its_own_tombstones),
        (SequenceLedger, "_note_gap", all_is_compaction, lacks_one_behind_a_compacted_one),
        (headrace.evidence, "num_absent", lambda *_: 0, lacks_what_compaction_keeps),
        (headrace.audit, "removed", lambda *_: "", lacks_its_start),
        (recount.Recount, "_check_time", lambda *_: None, states_a_later_time),
    ],
)
def test_an_audit_without_one_of_its_looks_is_caught(
    module: Any, name: str, broken: Any, what: Callable[[Logs], None], made: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = copy.deepcopy(made)
    what(logs)
    sound = noticed(judge(logs, monkeypatch))
    monkeypatch.setattr(module, name, broken)
    found = noticed(judge(logs, monkeypatch))
    assert BROKEN[what] in sound
    assert BROKEN[what] not in found


# Steps


def steps(logs: Logs, cut: int) -> list[list[tuple[int, int, int]]]:
    last = max(decode_example(each.value).number for each in logs.examples if each.value)
    return [[(0, 0, cut - 1)], [(0, cut, last)]]


def with_steps(logs: Logs, **more: Any) -> Callable[[Evidence], None]:
    """A version that has learned all but its second step, which was set aside."""
    examples = [decode_example(each.value) for each in logs.examples if each.value]
    cut = len(examples) // 2
    learned = {
        "num_interactions": sum(each.num_new for each in examples if each.number < cut),
        "num_feedback": sum(each.num_feedback for each in examples if each.number < cut),
        "newest_record_ms": max(each.newest_record_ms for each in examples if each.number < cut),
        "covered": {0: examples[-1].number}, "set_aside": [1],
    }  # fmt: skip
    return lambda evidence: evidence.plans.feed(manifest(0, 0, steps(logs, cut), **{**learned, **more}))


def test_steps_that_were_set_aside_are_not_on_their_way(made: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = copy.deepcopy(made)
    report = judge(logs, monkeypatch, with_steps(logs))
    assert report.passed, noticed(report)
    found, sums = report.checks[-1].found, report.sums
    num = sums["num_delivered"] - sums["num_trained"]
    assert sums["num_set_aside"] == num > 0
    assert f"{num:,} in steps that were set aside" in found
    assert "on their way" not in found


def test_a_version_that_claims_to_be_fresher_than_its_examples_is_named(
    made: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = copy.deepcopy(made)
    report = judge(logs, monkeypatch, with_steps(logs, newest_record_ms=NOW_MS + 10**9))
    assert "says that it has learned an action of" in noticed(report)


def test_what_earlier_manifests_trained_is_not_on_its_way(made: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention has removed them."""
    logs = copy.deepcopy(made)
    last = max(decode_example(each.value).number for each in logs.examples if each.value)
    newest = manifest(9, 40, [[(0, last - 3, last)]], covered={0: last})
    report = judge(logs, monkeypatch, lambda evidence: evidence.plans.feed(newest))
    assert report.passed, noticed(report)
    assert "on their way" not in report.checks[-1].found
