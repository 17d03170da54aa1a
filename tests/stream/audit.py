"""Recount a deployment from its topics: what should have become of the actions, and what the worker wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from stream.simulate import World, WorldConfig
from tests.state.oracle import Oracle
from tests.state.world import oracle_for, rows_of
from tests.stream.workers import Deployment
from wire.action import Rejection, decode_record
from wire.example import Example
from wire.example_codec import decode_example
from wire.example_log import ExampleLog, Verdict
from wire.partitioner import partition_of
from wire.status import WorkerStatus, decode_status
from wire.topics import example_key

Row = tuple[Any, ...]
DeadKey = tuple[int, int, int]
"""Partition, offset, index."""


@dataclass
class Recount:
    """For each user the interactions in order and the kinds delivered for each; for each dead letter its reason; and
    how many actions had which outcome."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    told: dict[str, list[int]] = field(default_factory=dict)
    dead: dict[DeadKey, str] = field(default_factory=dict)
    num_accepted: int = 0
    num_duplicate: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)


def world(seed: int = 0) -> Iterator[dict[str, object]]:
    """Endless actions of a small, lively world."""
    return World(WorldConfig(seed=seed, num_users=40, num_items=60, actions_per_s=20.0, late_share=0.05)).actions()


def is_idle(deployment: Deployment) -> bool:
    """Whether every action has been applied and every example relayed, according to the workers."""
    ends = deployment.ends(deployment.topics.actions)
    found = [part for status in last_statuses(deployment).values() for part in status.partitions.items()]
    return all(
        any(number == other and part.applied_offset == end - 1 and part.outbox_len == 0 for other, part in found)
        for number, end in ends.items()
    )


def expected(deployment: Deployment) -> Recount:
    """What should become of the actions topic, by the oracle of ``tests/state``: no Kafka, disk, batch or crash."""
    recount = Recount()
    for number, records in deployment.read(deployment.topics.actions).items():
        oracle = oracle_for(deployment.sequence, deployment.action)
        for record in records:
            for index, reason in _feed(oracle, record, number, deployment):
                recount.dead[number, record.offset, index] = reason
        for user, life in oracle.users.items():
            if life.tokens:
                recount.rows[user] = [token.key() for token in life.tokens]
                recount.told[user] = [token.bits for token in life.tokens]
        recount.num_accepted += oracle.accepted
        recount.num_duplicate += oracle.duplicate
    return recount


def _feed(oracle: Oracle, record: Any, partition: int, deployment: Deployment) -> Iterator[tuple[int, str]]:
    """Give a record's good actions to the oracle; returns (index, reason) of the others."""
    for at, one in enumerate(decode_record(record.value, record.timestamp, deployment.action)):
        if isinstance(one, Rejection):
            yield one.index, one.reason
        else:
            content = json.loads(record.value)
            is_list = isinstance(content, list)
            if {partition_of(key.encode(), deployment.partitions) for key in one.keys} != {partition}:
                yield at if is_list else -1, "wrong_partition"
            else:
                oracle.apply(content[at] if is_list else content)


def written(deployment: Deployment) -> Recount:
    """What readers of the sequences and dead-letter topics see. Raises AssertionError for a gap, a torn user or a kind
    that is delivered twice."""
    recount = Recount()
    for number, records in deployment.read(deployment.topics.sequences).items():
        log = ExampleLog(0)
        for record in records:
            where = f"partition {number} offset {record.offset}"
            assert record.value is not None, f"{where}: a tombstone, and nobody was forgotten"
            example = decode_example(record.value)
            verdict = log.feed(example)
            recount.verdicts[verdict.value] += 1
            assert verdict is not Verdict.GAP, f"{where}: {log.gap}"
            if verdict is Verdict.ACCEPT:
                assert record.key == example_key(example.address, deployment.sequence.num_slots)
                _take(recount, example)
    for record in _flat(deployment.read(deployment.topics.dead_letters)):
        headers = {name: value.decode() for name, value in record.headers}
        key = int(headers["partition"]), int(headers["offset"]), int(headers["index"])
        assert recount.dead.setdefault(key, headers["reason"]) == headers["reason"]
    return recount


def _take(recount: Recount, example: Example) -> None:
    """Put a segment in place; add the kinds that it delivers."""
    rows, told = recount.rows.setdefault(example.user, []), recount.told.setdefault(example.user, [])
    first, num = example.first_index, len(example.interactions)
    assert example.first_new_index == len(rows) or not example.num_new, f"user {example.user}: {len(rows)}"
    assert first + num - example.num_new <= len(rows)
    rows[first : first + num] = rows_of(example)
    told += example.interactions.action_bits[num - example.num_new :].tolist()
    for place, bits in zip(example.feedback_index.tolist(), example.feedback_bits.tolist(), strict=True):
        assert not told[first + place] & bits, f"user {example.user}: interaction {first + place} has {bits} twice"
        told[first + place] |= bits


def check(deployment: Deployment, num_actions: int) -> Recount:
    """Check promises 1 and 2: nothing lost or doubled, and every sequence as if nothing had happened."""
    want, got = expected(deployment), written(deployment)
    assert want.num_accepted + want.num_duplicate + len(want.dead) == num_actions
    assert got.dead == want.dead
    assert set(got.rows) == set(want.rows)
    for user, rows in want.rows.items():
        assert got.rows[user] == rows, f"user {user}: {len(got.rows[user])} interactions, expected {len(rows)}"
    assert got.told == want.told
    return got


def last_statuses(deployment: Deployment) -> dict[str, WorkerStatus]:
    """Component → its last report."""
    found: dict[str, WorkerStatus] = {}
    for record in _flat(deployment.read(deployment.topics.status)):
        status = decode_status(record.value)
        assert isinstance(status, WorkerStatus)
        found[status.component] = status
    return found


def _flat(records: dict[int, list[Any]]) -> Iterable[Any]:
    for part in records.values():
        yield from part
