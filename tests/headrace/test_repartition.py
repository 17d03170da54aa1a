"""A deployment goes on with another number of partitions: each user has every action once, in order, as if nothing had
been done, wherever the migration was interrupted."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import asdict

from headrace import added_partitions
from headrace.audit import audit
from headrace.config import Settings, read_settings
from headrace.migration import Migrator, NotDrained, restore
from headrace.migration_writer import Writer
from headrace.repartition import StillWaiting, StillWritten, repartition
from state.sequencer import Sequencer
from state.store import PartitionStore
from state.user import User
from state.user_store import UserStore
from stream.errors import MigrationUnfinished
from stream.migration import refuse_unfinished
from stream.simulate import World, WorldConfig
from tests.brokers import ApacheKafka, Broker
from tests.trainer.stage import admin_of
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.reading import Checkpoint
from trainer.sources.source import Position
from wire.action import Action, decode_record
from wire.errors import HeadraceError
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect, read, spans
from wire.kafka.producer import make_producer
from wire.partitioner import partition_of
from wire.topics import Topics

KINDS = ("impression", "click", "like")
NUM_BEFORE, NUM_AFTER = 900, 400
REQUEST_S = 1.0
"""How long a producer waits for an answer while the broker pauses."""
Kept = dict[str, tuple[int, list[bytes], bytes]]
"""User → the first kept segment, all kept ones as stored, and the user's features."""


def actions() -> list[dict[str, Any]]:
    """Enough for some users to have lost their first segments; some actions of the second part are repeats."""
    config = WorldConfig(seed=7, num_users=25, num_items=60, kinds=KINDS, actions_per_s=20.0, late_share=0.2)
    made = [dict(each) for each in itertools.islice(World(config).actions(), NUM_BEFORE + NUM_AFTER)]
    return [*made[:NUM_BEFORE], *made[NUM_BEFORE - 60 : NUM_BEFORE : 2], *made[NUM_BEFORE:]]


class Deployment:
    """Topics of a prefix, and what its workers would do with them, without processes."""

    def __init__(self, kafka: Broker, folder: Path, prefix: str, partitions: int) -> None:
        path = folder / f"{prefix}.toml"
        path.write_text(
            f'[kafka]\nbootstrap = "{kafka.bootstrap}"\nprefix = "{prefix}"\npartitions = {partitions}\n'
            f'[action]\nkinds = ["impression", "click", "like"]\n[sequence]\nmax_context = 12\nsegment_len = 4\n'
            f'[store]\npath = "{folder / "store"}"\n[trainer]\ncheckpoint_dir = "{folder / prefix}"\n'
        )
        self.settings: Settings = read_settings(path)
        self.topics = Topics.under(prefix)
        ensure_topics(self.settings.kafka)

    def send(self, sent: Sequence[dict[str, Any]], among: int = 0) -> None:
        """Have producers send these actions; ``among``: that many partitions, or those of the configuration."""
        producer = make_producer(self.settings.kafka)
        for each in sent:
            key = str(each["user"]).encode()
            home = partition_of(key, among or self.settings.kafka.partitions)
            producer.send(self.topics.actions, key=key, value=msgspec.json.encode(each), partition=home)
        producer.flush()
        producer.close()

    def work(self, folder: Path) -> list[PartitionStore]:
        """Restore every partition on an empty disk, apply the actions, and relay the examples."""
        consumer, producer = connect(self.settings.kafka), make_producer(self.settings.kafka)
        restore_only = restore_any(self.settings, folder)
        examples = self.topics.sequences
        for number, store in restore_only.items():
            held = spans(consumer, self.topics.actions)
            records = read(consumer, self.topics.actions, {number: held[number]})
            store.apply([(each.offset, each.timestamp, each.key, each.value) for each in records])
            for entry in store.outbox(limit=100_000):
                if entry.is_example:
                    producer.send(examples, key=entry.key, value=entry.value, partition=number)
        producer.flush()
        producer.close()
        consumer.close()
        return list(restore_only.values())

    def sequences(self) -> dict[int, list[tuple[bytes, bytes]]]:
        """The records of the sequences topic."""
        consumer, found = connect(self.settings.kafka), dict[int, list[tuple[bytes, bytes]]]()
        for record in read(consumer, self.topics.sequences, spans(consumer, self.topics.sequences)):
            found.setdefault(record.partition, []).append((record.key, record.value))
        consumer.close()
        return found


def restore_any(settings: Settings, folder: Path) -> dict[int, PartitionStore]:
    """What `restore` does, for a deployment that has not come to its end."""
    from wire.example_reader import ExampleReader

    topic, consumer = Topics.under(settings.kafka.prefix).sequences, connect(settings.kafka)
    decoder, stores = ExampleReader(topic), dict[int, PartitionStore]()
    for number, span in spans(consumer, topic).items():
        stores[number] = PartitionStore.open(
            folder / str(number), number, settings.action, settings.sequence,
            num_partitions=settings.kafka.partitions, topic=Topics.under(settings.kafka.prefix).actions,
        )  # fmt: skip
        records = read(consumer, topic, {number: span})
        found = [decoder.read(number, each.offset, each.value) for each in records]
        stores[number].restore(each for each in found if each is not None)
    consumer.close()
    return stores


def kept_of(users: Iterator[User]) -> Kept:
    return {
        user.name: (
            user.first_segment,
            [user.stored(index) for index in range(user.first_segment, user.tail.index + 1)],
            user.user_features.tobytes(),
        )
        for user in users
    }


def oracle(settings: Settings, sent: Sequence[dict[str, Any]]) -> tuple[Kept, int]:
    """One sequencer, fed with everything in one go; how many actions were duplicates."""
    sequencer = Sequencer(settings.action, settings.sequence, 0)
    for offset, each in enumerate(sent):
        (action,) = decode_record(msgspec.json.encode(each), each["timestamp"], settings.action)
        assert isinstance(action, Action)
        sequencer.apply(action, offset, each["timestamp"])
    sequencer.drain()
    return kept_of(iter(sequencer.users.values())), sequencer.num_duplicate


class MigrationCase:
    """An old deployment of 2 partitions at its end, and how one of 3 goes on."""

    def __init__(self, kafka: Broker, folder: Path, prefix: str) -> None:
        self.kafka, self.folder, self.prefix, self.all = kafka, folder, prefix, actions()
        self.old = Deployment(kafka, folder, prefix, 2)
        self.old.send(self.all[:NUM_BEFORE])
        for store in self.old.work(folder / "first"):
            store.close()

    def next(self, name: str = "new") -> Deployment:
        return Deployment(self.kafka, self.folder, f"{self.prefix}-{name}", 3)

    def to(self, new: Deployment) -> int:
        return repartition(self.old.settings, new.settings, without_trainer=True)

    def check(self, new: Deployment) -> None:
        """The new deployment applies what came later; its users are those of one that has met everything."""
        new.send(self.all[NUM_BEFORE:])
        stores = new.work(self.folder / new.topics.actions)
        found, num = Kept(), 0
        for store in stores:
            found |= kept_of(store.users.everyone())
            num += store.counts.num_duplicate
            store.close()
        wanted, num_duplicate = oracle(new.settings, self.all)
        assert num_duplicate > 20
        assert sum(first > 0 for first, *_ in wanted.values()) > 5, "some have lost their first segments"
        assert found == wanted
        assert num == num_duplicate


@pytest.fixture
def migration(kafka: Broker, tmp_path: Path, topic_prefix: str) -> MigrationCase:
    return MigrationCase(kafka, tmp_path, topic_prefix)


def test_every_user_goes_on_in_another_partition_with_each_action_once(migration: MigrationCase) -> None:
    new = migration.next()
    assert migration.to(new) == 0
    migration.check(new)


def test_an_interrupted_migration_goes_on_where_it_was(
    migration: MigrationCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, other = migration.next(), migration.next("other")
    write, left = Writer.write, [40]

    def stops(self: Writer, *args: Any) -> None:
        if not left[0]:
            self.wait()
            raise ConnectionResetError
        left[0] -= 1
        write(self, *args)

    monkeypatch.setattr(Writer, "write", stops)
    for num in (40, 25):
        left[0] = num
        with pytest.raises(ConnectionResetError):
            migration.to(new)
        with pytest.raises(MigrationUnfinished, match="run it again"):
            refuse_unfinished(new.settings.kafka)
    monkeypatch.undo()
    assert migration.to(new) == 0
    refuse_unfinished(new.settings.kafka)
    assert migration.to(other) == 0
    ours, theirs = new.sequences(), other.sequences()
    assert {number: each[1:] for number, each in ours.items()} == {n: each[1:] for n, each in theirs.items()}
    migration.check(new)


def forgets_older_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = UserStore.everyone

    def short(self: UserStore) -> Iterator[User]:
        for user in everyone(self):
            user.first_segment = user.tail.index
            yield user

    monkeypatch.setattr(UserStore, "everyone", short)


def keeps_the_old_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Migrator._record

    def stamped(self: Migrator, draft: Any) -> Any:
        draft[0].user_offset, draft[0].user_index = 20, 0
        return record(self, draft)

    monkeypatch.setattr(Migrator, "_record", stamped)


def forgets_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = UserStore.everyone

    def anonymous(self: UserStore) -> Iterator[User]:
        for user in everyone(self):
            user.tail.id_counts[:] = user.tail.id_counts[:0]
            user.tail.ids[:] = b""
            user.tail.flags &= ~64
            yield user

    monkeypatch.setattr(UserStore, "everyone", anonymous)


@pytest.mark.parametrize("broken", [forgets_older_segments, keeps_the_old_offsets, forgets_the_ids])
def test_a_migration_that_loses_or_doubles_anything_is_caught(
    migration: MigrationCase, monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    new = migration.next()
    broken(monkeypatch)
    migration.to(new)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        migration.check(new)


def test_what_the_old_worker_has_not_applied_is_not_left_behind(migration: MigrationCase, tmp_path: Path) -> None:
    migration.old.send(migration.all[NUM_BEFORE : NUM_BEFORE + 100])
    with pytest.raises(NotDrained, match="let the old worker run until"):
        migration.to(migration.next())
    with pytest.raises(NotDrained):
        restore(migration.old.settings, tmp_path / "again")


def test_what_waits_for_feedback_does_not_stay_unlearned_in_silence(migration: MigrationCase, tmp_path: Path) -> None:
    """Migrated interactions are no new ones to a trainer, so those that wait (`trainer.feedback`) would be lost."""
    old = migration.old.settings
    numbers = restore(old, tmp_path / "source").numbers

    def checkpoint(step: int, learned_ms: int) -> None:
        meta = {"positions": {str(n): asdict(Position(next_number=number)) for n, number in numbers.items()}}
        arrays = {"histories.born": np.zeros(0, np.int64), "histories.waiting_ms": np.array([learned_ms, learned_ms])}
        folder = CheckpointFolder(Path(old.trainer.checkpoint_dir), print).open()
        folder.write(Checkpoint(step, arrays, meta))
        folder.close()

    checkpoint(1, learned_ms=0)
    with pytest.raises(StillWaiting, match=r"nothing waits for feedback any more, but [1-9]"):
        repartition(old, migration.next("waits").settings)
    assert repartition(old, migration.next("waits").settings, without_waiting=True) == 0
    checkpoint(2, learned_ms=2**53)
    assert repartition(old, migration.next("learned").settings) == 0


def test_actions_that_arrive_in_the_old_topics_are_counted(
    migration: MigrationCase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = migration.next()
    assert migration.to(new) == 0
    assert migration.to(new) == 0
    assert "0 records have arrived there since" in capsys.readouterr().out
    migration.old.send(migration.all[-3:])
    assert migration.to(new) == 1
    assert "3 records have arrived there since" in capsys.readouterr().out

    late = migration.next("late")
    write = Writer.wait

    def meanwhile(self: Writer) -> None:
        migration.old.send(migration.all[:1])
        write(self)

    monkeypatch.setattr(Writer, "wait", meanwhile)
    for store in migration.old.work(migration.folder / "second"):
        store.close()
    with pytest.raises(StillWritten, match="find the producer"):
        migration.to(late)


def test_actions_in_partitions_that_were_added_are_not_left_behind(
    migration: MigrationCase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody has given the old topic partitions, and producers have divided the users among them since."""
    if migration.kafka.kind != "apache":
        pytest.skip("topics are changed on real Apache Kafka (java 17+ and mvn)")
    old, later = migration.old.settings, migration.all[NUM_BEFORE:]
    with admin_of(migration.kafka) as admin:
        admin.create_partitions({migration.old.topics.actions: 4})
    added = [each for each in later if partition_of(str(each["user"]).encode(), 4) >= 2]
    migration.old.send([*added, {"user": str(added[0]["user"]), "item": 1}], among=4)
    assert "are in partitions that were added" in str([list(each.violations) for each in audit(old).checks])

    new, parts = migration.next(), added_partitions._parts
    left = [len(added) // 2]

    def is_killed(record: Any, settings: Settings) -> Iterator[tuple[int, bytes | None]]:
        left[0] -= 1
        if not left[0]:
            raise ConnectionResetError
        yield from parts(record, settings)

    monkeypatch.setattr("headrace.added_partitions._parts", is_killed)
    with pytest.raises(ConnectionResetError):
        migration.to(new)
    monkeypatch.undo()
    assert migration.to(new) == 0
    assert f"{len(added) + 1:,} records of partitions that were added" in capsys.readouterr().out
    stores = new.work(migration.folder / new.topics.actions)
    found = {name: kept for store in stores for name, kept in kept_of(store.users.everyone()).items()}
    num_dead = sum(store.counts.num_dead for store in stores)
    for store in stores:
        store.close()
    wanted, _ = oracle(new.settings, [*migration.all[:NUM_BEFORE], *added])
    assert found == wanted
    assert num_dead == 1, "what is not an action is refused as it would have been"


def carried_while_the_broker_pauses(migration: MigrationCase, monkeypatch: pytest.MonkeyPatch) -> Counter[Any]:
    """How often each record of added partitions is in the new topic, after a pause in which requests time out and are
    repeated; the broker then takes the first ones too."""
    broker = migration.kafka
    if not isinstance(broker, ApacheKafka):
        pytest.skip("topics are changed on real Apache Kafka (java 17+ and mvn)")
    with admin_of(broker) as admin:
        admin.create_partitions({migration.old.topics.actions: 4})
    later = migration.all[NUM_BEFORE:]
    migration.old.send([each for each in later if partition_of(str(each["user"]).encode(), 4) >= 2], among=4)
    new, parts, num_read = migration.next(), added_partitions._parts, itertools.count()

    def pause_in_the_middle(record: Any, settings: Settings) -> Iterator[tuple[int, bytes | None]]:
        if next(num_read) == 20:
            pause.start()
            began.wait(60)
        yield from parts(record, settings)

    def hold() -> None:
        with broker.paused():
            began.set()
            time.sleep(4 * REQUEST_S)

    pause, began = threading.Thread(target=hold), threading.Event()
    monkeypatch.setattr(added_partitions, "_parts", pause_in_the_middle)
    monkeypatch.setitem(added_partitions.BULK, "request_timeout_ms", int(1000 * REQUEST_S))
    num_carried = added_partitions.carry(migration.old.settings, new.settings)
    pause.join()
    consumer = connect(new.settings.kafka)
    records = read(consumer, new.topics.actions, spans(consumer, new.topics.actions))
    found = Counter(dict(each.headers)[added_partitions.CARRIED] for each in records)
    consumer.close()
    assert len(found) == num_carried > 100
    return found


def test_a_pause_of_the_broker_carries_nothing_twice(migration: MigrationCase, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(carried_while_the_broker_pauses(migration, monkeypatch).values()) == {1}


def test_a_carry_that_repeats_what_was_not_acknowledged_is_caught(
    migration: MigrationCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(added_partitions.BULK, "enable_idempotence", False)
    assert max(carried_while_the_broker_pauses(migration, monkeypatch).values()) > 1


def test_what_a_worker_refuses_in_a_list_that_is_carried_takes_no_other_action_along() -> None:
    new: Any = SimpleNamespace(kafka=replace(Settings().kafka, partitions=8), action=Settings().action)
    at_ms = 1_700_000_000_000
    users = [user for user in (f"u{number}" for number in range(99)) if partition_of(user.encode(), 4) == 2]
    given = [{"user": user, "item": 1, "action": "click", "timestamp": at_ms} for user in users]
    given.insert(3, {"user": users[0], "item": 1, "action": "nonsense", "timestamp": at_ms})
    record = SimpleNamespace(key=users[0].encode(), value=msgspec.json.encode(given), timestamp=at_ms)
    carried = {home: msgspec.json.decode(body) for home, body in added_partitions._parts(record, new) if body}
    assert sorted(map(str, given)) == sorted(str(each) for some in carried.values() for each in some)
    for home, some in carried.items():
        assert {partition_of(each["user"].encode(), 8) for each in some if each["action"] == "click"} <= {home}
    whole = SimpleNamespace(key=b"u1", value=b"no JSON", timestamp=at_ms)
    assert list(added_partitions._parts(whole, new)) == [(partition_of(b"u1", 8), b"no JSON")]


def test_topics_that_hold_anything_else_are_refused(migration: MigrationCase) -> None:
    new = migration.next()
    new.send(migration.all[:20])
    for store in new.work(migration.folder / "too early"):
        store.close()
    with pytest.raises(HeadraceError, match="a worker has written there"):
        migration.to(new)
    with pytest.raises(HeadraceError, match=r"kafka\.prefix: expected another one"):
        repartition(migration.old.settings, migration.old.settings)
