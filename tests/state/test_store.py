"""The store on a real RocksDB: what it does with records, and what it says when something goes wrong."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rocksdict import WriteBatch

import state.database
from state import intake
from state.config import StoreConfig
from state.database import Database
from state.errors import StoreClosed, StoreCorrupt, StoreError, StoreFull, StoreLocked, StoreMismatch
from state.store import PartitionStore
from tests.brokers import REPOSITORY, wait_until
from tests.state.victim import SEQUENCE, Topic
from tests.state.world import ACTION, World, read_user, rows_of, stream_of
from wire.config import ActionConfig, SequenceConfig
from wire.example import MARK_ITEM, MARK_USER, PIECE, Address, Mark
from wire.example_codec import decode_example
from wire.example_log import ExampleLog, Verdict
from wire.hashing import item_hash
from wire.moment import MAX_TIMESTAMP_MS
from wire.partitioner import partition_of

ROOT = Path(__file__).parents[2]


ANY_TIME = ActionConfig(min_timestamp_ms=0)


def action(user: str = "u", item: object = "i", time_ms: int = 1_000, kind: str = "click") -> bytes:
    return json.dumps({"user": user, "item": item, "action": kind, "timestamp": time_ms}).encode()


def test_records_become_examples_in_the_outbox(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 3, ANY_TIME)
    assert store.is_new
    result = store.apply([(5, 2_000, b"u", action(item="a")), (6, 2_001, b"u", action(item="b"))])
    assert (result.num_records, result.num_examples, result.num_dead, result.applied_offset) == (2, 1, 0, 6)
    (entry,) = store.outbox()
    example = decode_example(entry.value)
    assert (entry.key, entry.number, entry.record_ms, entry.is_example) == (b"u\x00.0", 0, 2_001, True)
    assert (example.user, example.partition, example.num_new, sorted(example.names.values())) == ("u", 3, 2, ["a", "b"])
    store.close()


def test_repeated_records_change_nothing(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    records = [(0, 2_000, None, action()), (1, 2_000, None, b"{")]
    store.apply(records)
    before = store.status()
    result = store.apply(records)
    assert (result.num_records, result.num_examples, result.num_dead) == (0, 0, 0)
    assert store.status() == before
    store.close()


def test_a_reopened_store_continues_where_it_was(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    store.apply([(0, 2_000, None, action()), (1, 2_000, None, action("v", time_ms=1_001))])
    store.set_writer_epoch(4)
    before = store.status()
    store.close()
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    assert not store.is_new
    assert store.status() == before
    store.apply([(2, 70_000, None, action("u", "j", time_ms=61_000))])
    example = decode_example(store.outbox()[-1].value)
    assert (example.user, example.writer_epoch, example.number, example.first_new_index) == ("u", 4, 2, 1)
    assert example.interactions.timestamp_ms.tolist() == [61_000]
    assert [each.interactions.timestamp_ms.tolist() for each in read_user(store, "u")] == [[1_000, 61_000]]
    store.close()


@pytest.mark.parametrize("at_once", [False, True])
def test_what_was_passed_over_after_the_last_record_is_on_disk(tmp_path: Path, at_once: bool) -> None:
    """Markers of transactions, say: they are no records, and nothing is missing if the topic begins after them."""
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    store.apply([(0, 2_000, None, action())])
    assert (store.applied_offset, store.next_offset) == (0, 1)
    store.pass_over(5, at_once=at_once)
    store.pass_over(3)
    assert (store.applied_offset, store.next_offset) == (0, 5)
    if not at_once:
        store.ack(store.outbox()[-1].index)
    store.close()
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    assert (store.applied_offset, store.next_offset) == (0, 5)
    store.apply([(4, 3_000, None, action("v"))])
    assert (store.applied_offset, store.next_offset, store.counts.num_accepted) == (4, 5, 2), "offsets decide"
    store.apply([(7, 4_000, None, action("w"))])
    assert store.next_offset == 8
    store.restore([])
    assert store.next_offset == 0
    store.close()


def test_waiting_entries_are_produced_under_the_current_epoch(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    store.set_writer_epoch(1)
    store.apply([(0, 2_000, None, action())])
    store.set_writer_epoch(2)
    assert decode_example(store.outbox()[0].value).writer_epoch == 2
    store.close()


def test_a_dead_letter_says_where_it_came_from(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 2, ANY_TIME, topic="here")
    store.apply([(7, 2_000, None, b"[" + action() + b', {"user": 3}]')])
    dead, example = store.outbox(limit=1)[0], store.outbox(start=1)[0]
    assert example.is_example
    assert not dead.is_example
    assert (dead.key, dead.value) == (b"here/2/7", b'{"user": 3}')
    headers = dict(dead.headers)
    assert headers.pop("message").startswith(b"item: expected")
    assert headers == {"reason": b"missing_field", "topic": b"here", "partition": b"2", "offset": b"7", "index": b"1"}
    store.close()


def test_an_example_is_not_returned_with_a_dead_letter_before_it(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    for offset in range(3):
        store.apply([(2 * offset, 2_000, None, action(item=offset)), (2 * offset + 1, 2_000, None, b"{")])
    answers = []
    while entries := store.outbox():
        answers.append([entry.is_example for entry in entries])
        store.ack(entries[-1].index)
    assert answers == [[False], [True, False], [True, False], [True]]
    store.close()


def test_acknowledged_entries_are_gone_and_the_rest_stays(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    for offset in range(5):
        store.apply([(offset, 2_000 + offset, None, action(item=offset))])
    store.ack(store.outbox(limit=2)[-1].index, 17)
    store.ack(0, 3)
    assert (store.outbox_len, store.sequences_offset) == (3, 17)
    assert (store.status().relayed_number, store.status().oldest_outbox_record_ms) == (1, 2_002)
    store.close()
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    assert [entry.number for entry in store.outbox()] == [2, 3, 4]
    store.close()


def test_an_example_that_was_found_in_the_topic_takes_what_precedes_it_out_of_the_outbox(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    store.apply([(0, 2_000, None, action("a")), (1, 2_000, None, action("b")), (2, 2_000, None, b"{")])
    store.apply([(3, 2_000, None, action("c")), (4, 2_000, None, action("d"))])
    for seen, waiting in ((-1, 5), (0, 3), (2, 1), (1, 1)):  # the dead letter is the first entry
        store.ack_seen(seen)
        assert store.outbox_len == waiting
    assert [entry.number for entry in store.outbox()] == [3]
    assert store.status().relayed_number == 2
    store.close()


@pytest.mark.parametrize("num_arrived", [0, 4, 10])
@pytest.mark.parametrize("boundary", [0, 12, 15, 17, 21])
def test_compaction_removes_nobody_whose_examples_arrived_before_a_kill(
    num_arrived: int, boundary: int, tmp_path: Path
) -> None:
    """Sent twice, the second ones would be their keys' last records, and those below the boundary would replace the
    first ones, while readers skip the second ones above it."""
    store = PartitionStore.open(tmp_path / "lost", 0, ANY_TIME)
    store.set_writer_epoch(1)
    store.apply([(at, 2_000, None, action(f"u{at}")) for at in range(10)])
    topic = [(entry.key, decode_example(entry.value)) for entry in store.outbox()[:num_arrived]]
    store.close()
    store = PartitionStore.open(tmp_path / "lost", 0, ANY_TIME)
    log = ExampleLog(None, writer_epoch=store.writer_epoch, allow_gaps=True)
    assert all(log.feed(example) is Verdict.ACCEPT for _, example in topic)
    store.ack_seen(log.last_number)
    store.set_writer_epoch(2)
    topic += [(entry.key, decode_example(entry.value)) for entry in store.outbox()]
    store.close()
    last = {key: at for at, (key, _) in enumerate(topic[:boundary])}
    kept = [example for at, (key, example) in enumerate(topic) if at >= boundary or last[key] == at]
    restored = PartitionStore.open(tmp_path / "new", 0, ANY_TIME)
    restored.restore(kept)
    assert {user.name for user in restored.users.everyone()} == {f"u{at}" for at in range(10)}
    assert restored.applied_offset <= 9
    restored.close()


@pytest.mark.parametrize("backend", ["cpp", "python"])
def test_requests_about_items_are_refused_in_partitions_that_are_not_theirs(tmp_path: Path, backend: str) -> None:
    """Otherwise one here and its undo there have no order."""
    config = StoreConfig(backend=backend)
    for number in range(4):
        store = PartitionStore.open(tmp_path / str(number), number, ANY_TIME, store=config, num_partitions=4)
        store.apply([(0, 2_000, None, b'{"forget":true,"item":5}'), (1, 2_000, None, b'{"forget":false,"item":"5"}')])
        letters = [dict(entry.headers) for entry in store.outbox() if not entry.is_example]
        if number == partition_of(b"5", 4):
            assert not letters
        else:
            assert [each["reason"] for each in letters] == [b"wrong_partition"] * 2
            assert b"item '5': expected in partition" in letters[0]["message"]
            assert not any(entry.is_example for entry in store.outbox())
        store.close()


def test_users_of_other_partitions_are_refused(tmp_path: Path) -> None:
    users = [f"u{n}" for n in range(20)]
    mine = [user for user in users if partition_of(user.encode(), 4) == 1]
    store = PartitionStore.open(tmp_path, 1, ANY_TIME, num_partitions=4)
    store.apply([(0, 2_000, None, b"[" + b",".join(map(action, users)) + b"]"), (1, 2_000, None, action("u0"))])
    letters = store.outbox()
    dead = [dict(letter.headers) for letter in letters if not letter.is_example]
    assert {headers["reason"] for headers in dead} == {b"wrong_partition"}
    assert len(dead) == 20 - len(mine) + (partition_of(b"u0", 4) != 1)
    assert [json.loads(letter.value)["user"] for letter in letters][: 20 - len(mine)] == [
        user for user in users if user not in mine
    ]
    assert all(read_user(store, user) for user in mine)
    store.close()


def test_what_it_takes_to_refuse_users_of_other_partitions_grows_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer may have another partitioner: a list of a thousand of its actions took up to 1.4 s."""
    split, num = intake._elements, list[int]()
    monkeypatch.setattr(intake, "_elements", lambda value: num.append(1) or split(value))
    users = [user for n in range(200) if partition_of((user := f"u{n}").encode(), 4) != 1]
    store = PartitionStore.open(tmp_path, 1, ANY_TIME, num_partitions=4)
    store.apply([(0, 2_000, None, b" [" + b",".join(map(action, users)) + b"]"), (1, 2_000, None, action(users[0]))])
    letters = store.outbox()
    assert [json.loads(letter.value or b"")["user"] for letter in letters] == [*users, users[0]]
    assert [dict(each.headers)["index"] for each in letters] == [*(b"%d" % n for n in range(len(users))), b"-1"]
    assert len(num) == 2
    store.close()


def test_a_long_life_keeps_only_the_segments_that_context_needs(tmp_path: Path) -> None:
    sequence = SequenceConfig(join_window_s=0, max_context=10, segment_len=4)
    store = PartitionStore.open(tmp_path, 0, ANY_TIME, sequence=sequence)
    for offset in range(60):
        store.apply([(offset, 2_000 + offset, None, b"[" + b",".join([action(item=offset)] * 5) + b"]")])
    assert len(list(store._db.under(b"s"))) <= sequence.num_slots == 4
    segments = read_user(store, "u")
    assert [(each.segment, len(each.interactions), each.num_new) for each in segments] == [
        (71, 4, 0), (72, 4, 0), (73, 4, 0), (74, 4, 0),
    ]  # fmt: skip
    store.close()


def test_a_users_old_segments_are_not_read_to_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = SequenceConfig(max_context=50, segment_len=2)
    store = PartitionStore.open(tmp_path, 0, ANY_TIME, sequence=sequence)
    records = [(offset, 2_000_000, None, action(item=offset, time_ms=offset * 100_000)) for offset in range(20)]
    store.apply(records)
    store.close()
    store = PartitionStore.open(tmp_path, 0, ANY_TIME, sequence=sequence)
    read: list[bytes] = []
    right = Database.get_many

    def noted(self: Database, keys: list[bytes]) -> list[bytes | None]:
        read.extend(key for key in keys if key.startswith(b"s"))
        return right(self, keys)

    monkeypatch.setattr(Database, "get_many", noted)
    store.apply([(20, 2_000_000, None, action(item=3, time_ms=2_000_000))])
    assert read == []
    store.apply([(21, 2_000_000, None, action(item=3, time_ms=1_000))])
    assert len(read) == 10, "a late action may join any of them"
    store.close()


def test_a_segment_is_written_again_on_request_with_nothing_new(tmp_path: Path) -> None:
    sequence = SequenceConfig(join_window_s=0, max_context=1, segment_len=1)  # two slots
    store = PartitionStore.open(tmp_path, 0, ANY_TIME, sequence=sequence)
    for offset in range(5):
        store.apply([(offset, 2_000 + offset, None, action(item=offset))])
    store.apply([(5, 2_500, None, action("v", item=9))])
    store.ack(5)
    assert store.refresh(Address(*each) for each in [("u", 0, 0), ("u", 3, 0), ("v", 1, 0), ("nobody", 0, 0)]) == 2
    examples = [decode_example(entry.value) for entry in store.outbox() if entry.value is not None]
    assert [(e.user, e.number, e.segment, e.num_new, e.num_feedback) for e in examples] == [
        ("u", 6, 4, 0, 0), ("u", 7, 3, 0, 0),
    ], "segment 4 lies where 0 would; nothing lies where the second of v would"  # fmt: skip
    assert [entry.key for entry in store.outbox() if entry.value] == [b"u\x000", b"u\x001"]
    assert [(e.newest_record_ms, e.resume_from_offset, e.user_offset) for e in examples] == [
        (2_500, 6, 4), (2_500, 6, 4),
    ]  # fmt: skip
    store.close()


def test_a_piece_is_written_again_with_all_that_it_held(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME, sequence=SequenceConfig(join_window_s=0, segment_len=4))
    for offset, items in enumerate(((1,), (2, 3, 4), (5,), (6, 7))):
        store.apply([(offset, 2_000, None, b"[" + b",".join(action(item=item) for item in items) + b"]")])
    store.ack(3)
    assert store.refresh(Address("u", PIECE, first) for first in (0, 1, 2, 4, 5, 7)) == 5
    examples = [decode_example(entry.value) for entry in store.outbox()]
    assert [(e.segment, e.first, len(e.interactions), e.num_new) for e in examples] == [
        (0, 0, 1, 0), (0, 1, 3, 0), (0, 2, 1, 0), (1, 0, 1, 0), (1, 1, 2, 0),
    ], "none begins at the last place, which the user has not reached"  # fmt: skip
    store.close()


def test_an_unknown_user_has_no_segments(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    assert read_user(store, "nobody") == []
    store.close()


def test_an_interrupted_restore_leaves_a_new_store(tmp_path: Path) -> None:
    world = World(tmp_path, stream_of(1, 80), SEQUENCE)
    world.finish()
    examples = world.accepted()
    world.store.close()

    def broken():  # type: ignore[no-untyped-def]
        yield from examples[: len(examples) // 2]
        raise OSError("the broker went away")

    store = PartitionStore.open(tmp_path / "fresh", 0, ACTION, SEQUENCE)
    with pytest.raises(OSError, match="went away"):
        store.restore(broken())
    store = PartitionStore.open(tmp_path / "fresh", 0, ACTION, SEQUENCE)
    assert store.is_new
    assert read_user(store, examples[0].user) == []
    assert store.restore(iter(examples)) == len(examples)
    assert store.next_number == world.store.next_number
    store.close()


def test_a_restore_that_dies_while_it_removes_the_old_files_leaves_a_store_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p-0"
    store = PartitionStore.open(path, 0, ANY_TIME)
    store.apply([(0, 2_000, None, action())])

    def die_midway(folder: Path) -> None:
        (folder / "CURRENT").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("state.database.shutil.rmtree", die_midway)
        with pytest.raises(KeyboardInterrupt):
            store.restore([])
    store = PartitionStore.open(path, 0, ANY_TIME)
    assert store.is_new
    store.close()
    assert [each.name for each in tmp_path.iterdir()] == ["p-0"]


def test_a_restore_from_an_empty_topic_starts_at_the_beginning(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    assert store.restore([]) == 0
    assert (store.applied_offset, store.next_number, store.is_new) == (-1, 0, True)
    store.close()


# When something goes wrong


def test_another_process_that_holds_the_store_is_named(tmp_path: Path) -> None:
    program = (
        "import sys; from state.store import PartitionStore; s = PartitionStore.open(sys.argv[1], 0);"
        "print('open', flush=True); sys.stdin.read(); s.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StoreLocked, match="another worker holds it"):
            PartitionStore.open(tmp_path, 0, ANY_TIME)
        other.communicate(b"")
    PartitionStore.open(tmp_path, 0, ANY_TIME).close()


def test_a_full_disk_stops_the_store_and_loses_nothing_that_it_had(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: the system refuses the write in the same place."""
    program = """
import resource, sys
from state.errors import StoreClosed, StoreFull
from state.store import PartitionStore
store = PartitionStore.open(sys.argv[1], 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
value = b'{"user":"u%d","item":"i","action":"click","timestamp":1700000000000}'
try:
    for offset in range(100_000):
        store.apply([(offset, 1_700_000_000_000, None, value % offset)])
except StoreFull as error:
    print(offset - 1, str(error).count(chr(10)), flush=True)
try:
    store.apply([(offset, 1_700_000_000_000, None, value % offset)])
except StoreClosed:
    print("closed")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (applied, num_lines), closed = done.stdout.splitlines()[0].split(), done.stdout.splitlines()[1]
    assert (num_lines, closed) == ("0", "closed")
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    assert store.applied_offset == int(applied) > 10
    assert store.next_number == int(applied) + 1 == store.outbox_len
    store.close()
    assert issubclass(StoreFull, StoreError)


def test_a_limit_of_open_files_is_named(tmp_path: Path) -> None:
    program = """
import resource, sys
from state.errors import StoreError
from state.store import PartitionStore
resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
try:
    PartitionStore.open(sys.argv[1], 0)
except StoreError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "expected to open all files, got " in done.stdout
    assert done.stdout.endswith("; raise ulimit -n\n")


@pytest.mark.parametrize("damage", ["CURRENT", "MANIFEST", "sst"])
def test_damaged_files_are_refused_with_what_to_do(damage: str, tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    for offset in range(50):
        store.apply([(offset, 2_000, None, action(f"u{offset}"))])
    store.close()
    (path,) = [path for path in tmp_path.iterdir() if path.name.startswith(damage) or path.suffix == f".{damage}"]
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), 7):
        content[at] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match="remove the folder"):
        store = PartitionStore.open(tmp_path, 0, ANY_TIME)


@pytest.mark.parametrize("key", [b"u", b"s"])
def test_a_truncated_record_is_damage_not_a_shorter_history(key: bytes, tmp_path: Path) -> None:
    from rocksdict import WriteBatch

    sequence = SequenceConfig(segment_len=1)
    store = PartitionStore.open(tmp_path, 0, ANY_TIME, sequence=sequence)
    store.apply([(offset, 2_000, None, action(item=offset)) for offset in range(3)])
    batch = WriteBatch(raw_mode=True)
    name, value = next(store._db.under(key))
    batch.put(name, value[:-1])
    store._db.write(batch)
    store.close()
    store = PartitionStore.open(tmp_path, 0, ANY_TIME, sequence=sequence)
    with pytest.raises(StoreCorrupt, match="segment 0 of user 'u'" if key == b"s" else "user 'u' is damaged"):
        store.apply([(3, 2_000, None, action())])
    with pytest.raises(StoreClosed):
        store.apply([(3, 2_000, None, action())])


def test_a_missing_segment_is_damage_not_a_shorter_history(tmp_path: Path) -> None:
    from rocksdict import WriteBatch

    sequence = SequenceConfig(segment_len=1)
    store = PartitionStore.open(tmp_path, 0, ANY_TIME, sequence=sequence)
    store.apply([(offset, 2_000, None, action(item=offset)) for offset in range(3)])
    batch = WriteBatch(raw_mode=True)
    batch.delete(next(key for key, _ in store._db.under(b"s")))
    store._db.write(batch)
    store.close()
    store = PartitionStore.open(tmp_path, 0, ANY_TIME, sequence=sequence)
    with pytest.raises(StoreCorrupt, match="segment 0 of user 'u'"):
        read_user(store, "u")
    store.close()


@pytest.mark.parametrize(
    ("partition", "action_config", "field"),
    [
        (1, ActionConfig(), "partition"),
        (0, ActionConfig(kinds=("click", "impression", "like")), "kinds"),
        (0, ActionConfig(features=("genre",)), "features"),
    ],
)
def test_another_configuration_is_refused(
    partition: int, action_config: ActionConfig, field: str, tmp_path: Path
) -> None:
    store = PartitionStore.open(tmp_path, 0, ANY_TIME)
    store.apply([(0, 2_000, None, action())])
    store.close()
    with pytest.raises(StoreMismatch, match=f"expected {field} "):
        PartitionStore.open(tmp_path, partition, action_config)
    more = ActionConfig(kinds=(*ActionConfig().kinds, "share"))
    PartitionStore.open(tmp_path, 0, more).close()


def test_another_number_of_slots_is_refused(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path, 0, sequence=SequenceConfig(max_context=200, segment_len=16))
    store.set_writer_epoch(1)
    store.close()
    PartitionStore.open(tmp_path, 0, sequence=SequenceConfig(max_context=195, segment_len=16)).close()
    with pytest.raises(StoreMismatch, match="expected num_slots 14,"):
        PartitionStore.open(tmp_path, 0, sequence=SequenceConfig(max_context=100, segment_len=16))


def test_examples_of_another_configuration_are_not_restored(tmp_path: Path) -> None:
    world = World(tmp_path, stream_of(1, 40), SEQUENCE)
    world.finish()
    world.store.close()
    store = PartitionStore.open(tmp_path / "fresh", 0, ActionConfig(kinds=ACTION.kinds), SEQUENCE)
    with pytest.raises(StoreMismatch, match="keep the configuration"):
        store.restore(world.accepted())


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="expected a folder"):
        PartitionStore.open(tmp_path / "file", 0)


# Kills


NUM_KILLS, MOST_LATE = 8, 40


@pytest.mark.slow
def test_a_process_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    seed, num_records, rng = 11, 1_200, random.Random(11)
    (tmp_path / "topic").mkdir()
    for _ in range(NUM_KILLS):
        wanted = _num_files(tmp_path / "topic") + rng.randrange(20, 100)
        with _victim(tmp_path, seed, num_records, wanted + MOST_LATE) as victim:
            _wait_for_files(victim, tmp_path / "topic", wanted)
            assert victim.poll() is None, "killed in the middle"
    with _victim(tmp_path, seed, num_records) as victim:
        wait_until(lambda: victim.poll() is not None, 120, "the rest of the records", every_s=0.01)
        assert victim.returncode == 0
    _check_what_the_killed_left(tmp_path, seed, num_records)


@contextmanager
def _victim(folder: Path, seed: int, num_records: int, most: int = sys.maxsize) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is at work on its records until the block ends, however it ends."""
    command = [sys.executable, "-m", "tests.state.victim", str(folder), str(seed), str(num_records), str(most)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as victim:
        try:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"ready\n"
            yield victim
        finally:
            victim.kill()


def _wait_for_files(victim: subprocess.Popen[bytes], folder: Path, wanted: int) -> None:
    """Wait until it has written so many, or has ended."""

    def are_there() -> bool:
        return victim.poll() is not None or _num_files(folder) >= wanted

    wait_until(are_there, 60, f"{wanted} records", every_s=0.001)


def _num_files(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def _check_what_the_killed_left(folder: Path, seed: int, num_records: int) -> None:
    (folder / "world").mkdir()
    world = World(folder / "world", stream_of(seed, num_records), SEQUENCE)
    world.store.close()
    shutil.rmtree(folder / "world")
    world.store = PartitionStore.open(folder / "db", 0, ACTION, SEQUENCE)
    world.topic = [("", value) for value in Topic(folder / "topic").values()]
    for letter in Topic(folder / "dead").values():
        headers = {name: text.decode() for name, text in literal_eval(letter.decode())}
        world.dead.append((int(headers["offset"]), int(headers["index"]), headers["reason"]))
    world.check()
    world.store.close()


# Restoring


def read(store: PartitionStore, users: set[str]) -> dict[str, list[Any]]:
    return {
        user: [
            (each.segment, rows_of(each), each.action_ids.tolist(), each.user_feature_hash.tolist())
            for each in read_user(store, user)
        ]
        for user in users
    }


@pytest.mark.parametrize("seed", [5, 6])
def test_a_store_restored_from_any_prefix_of_the_topic_equals_the_lost_one(seed: int, tmp_path: Path) -> None:
    """At every length of the topic, so also in the middle of batches, compacted or not."""
    rng = random.Random(seed)
    sequence = SequenceConfig(join_window_s=0.2, max_context=rng.choice((3, 6)), segment_len=2)
    world = World(tmp_path, stream_of(seed, 40), sequence, StoreConfig())
    while world.store.applied_offset < world.log[-1][0]:
        world.apply(rng.randrange(1, 9))
    world.finish()
    users = {decode_example(value).user for key, value in world.topic if key}
    lost, topic = read(world.store, users), world.topic
    counts = world.store.counts
    for length in range(1, len(topic) + 1):
        world.topic, world.dead = topic[:length], []
        world.store.close()
        world.store = PartitionStore.open(tmp_path / "restored", 0, ACTION, sequence)
        world.claim(restore=world.left_of(rng.choice((0, length, rng.randrange(length)))))
        told = world.accepted()
        assert world.store.applied_offset == (told[-1].resume_from_offset - 1 if told else -1)
        while world.store.applied_offset < world.log[-1][0]:
            world.apply(rng.randrange(1, 30))
        world.finish()
        assert read(world.store, users) == lost
        assert world.store.counts == counts
        world.check_told()
    world.store.close()


def test_what_a_ghost_writes_of_a_forgotten_user_gets_a_tombstone_again(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path / "db", 0, ACTION)
    store.apply([(0, 1_000, None, b'{"user":"u","item":1,"action":"see","timestamp":1000}'),
                 (1, 1_000, None, b'{"forget":true,"user":"u"}')])  # fmt: skip
    store.ack(store.outbox(limit=1000)[-1].index)
    address = Address("u", PIECE, 0)
    assert store.refresh([], [address]) == 0
    assert not store.outbox(), "a tombstone is there already"
    assert store.refresh([address]) == 0
    (entry,) = store.outbox()
    assert (entry.key, entry.value, entry.is_example) == (b"u\0.0", None, True)
    store.close()


@pytest.mark.parametrize("backend", ["cpp", "python"])
def test_the_mark_of_a_request_whose_record_states_no_possible_time_states_one(backend: str, tmp_path: Path) -> None:
    """Status and manifests repeat it, in numbers of 53 bits."""
    store = PartitionStore.open(tmp_path / "db", 0, ACTION, store=StoreConfig(backend=backend))
    store.apply(
        [
            (0, 1_700_000_000_000_000_000, None, b'{"forget":true,"user":"u"}'),
            (1, 2**63 - 1, None, b'{"forget":true,"item":7}'),
        ]
    )
    store.apply([(2, -(2**63), None, b'{"forget":true,"item":"i"}')])
    marks = [decode_example(entry.value or b"") for entry in store.outbox(limit=99) if entry.is_example]
    assert {each.newest_record_ms for each in marks} == {MAX_TIMESTAMP_MS, -1}
    store.close()


def test_the_mark_of_an_item_is_sent_again_when_it_was_overwritten(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path / "db", 0, ACTION)
    requests = [b'{"forget":true,"item":7}', b'{"forget":true,"item":8}', b'{"forget":false,"item":8}']
    store.apply([(offset, 1_000, None, request) for offset, request in enumerate(requests)])
    store.ack(store.outbox(limit=1000)[-1].index)
    addresses = [Address("", MARK_ITEM, item_hash(item)) for item in (7, 8, 9)]
    assert store.refresh(addresses) == 2
    marks = [decode_example(entry.value or b"") for entry in store.outbox()]
    assert [(each.mark, each.marked_item) for each in marks] == [
        (Mark.ITEM, item_hash(7)), (Mark.ITEM_BACK, item_hash(8)),
    ]  # fmt: skip
    assert store.refresh([Address("", MARK_USER, 0)]) == 1
    store.close()


def test_the_log_of_the_database_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state.database, "LOG_BYTES", 20_000)
    database = Database(tmp_path, StoreConfig(write_buffer_bytes=1 << 20))
    database.open()
    for number in range(1500):
        batch = WriteBatch(raw_mode=True)
        batch.put(number.to_bytes(4, "big"), random.Random(number).randbytes(20_000))
        database.write(batch)
    database.close()
    assert 0 < sum(file.stat().st_size for file in tmp_path.glob("LOG*")) < 3 * 20_000


FEW_THREADS = """
import resource, sys
from pathlib import Path
from state.config import StoreConfig
from state.database import Database, start_threads
folder = Path(sys.argv[1])
if sys.argv[2] == "started":
    start_threads(folder)
else:
    made = Database(folder / "filled", StoreConfig(write_buffer_bytes=1 << 20))
    made.open()
    for number in range(20):
        made._live()[b"key %d" % number] = b"value"
        made._live().flush(wait=True)
    made.close()
    sys.exit()
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (7 << 20),) * 2)  # a thread's stack has 8 MiB
database = Database(folder / "filled", StoreConfig(block_cache_bytes=1 << 20, write_buffer_bytes=1 << 20))
database.open()
assert database.get(b"key 3") == b"value"
database._live().flush(wait=True)
database.close()
"""


def test_a_database_opens_where_the_system_refuses_threads(tmp_path: Path) -> None:
    """RocksDB would abort the process: for its first database, and for each that has many files."""
    for step in ("filled", "started"):
        command = [sys.executable, "-c", FEW_THREADS, str(tmp_path), step]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=120)
        assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".threads*"))
