"""A partition in a test: a log of records, a store that applies it, its topic, and what can happen to them."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from state.config import StoreConfig
from state.store import PartitionStore, Record
from tests.state.oracle import Oracle
from wire.config import MAX_IDS, ActionConfig, SequenceConfig
from wire.example import NUM_OPEN, Example, fence
from wire.example_codec import decode_example, encode_example, view
from wire.example_log import ExampleLog, Verdict
from wire.hashing import key_hash
from wire.topics import address_of_key

ACTION = ActionConfig(
    kinds=("see", "click", "like"),
    features=("genre", "maker"),
    user_features=("land",),
    user_tokens=True,
    propensity=True,
    max_future_s=5,
    min_timestamp_ms=0,
)


def rows_of(example: Example) -> list[tuple[Any, ...]]:
    """An example's interactions as tuples that compare (NaN is None)."""
    rows = example.interactions
    values = [None if np.isnan(value) else float(value) for value in rows.value]
    columns = [
        column.tolist()
        for column in (rows.item_hash, rows.action_bits, rows.timestamp_ms, rows.domain_hash, example.session_hash)
    ]
    features = [tuple(row) for row in rows.feature_hash.tolist()]
    return list(zip(*columns, values, features, strict=True))


def oracle_for(sequence: SequenceConfig, action: ActionConfig = ACTION) -> Oracle:
    return Oracle(
        list(action.kinds), list(action.features), list(action.user_features), action.user_tokens,
        action.propensity, sequence.join_window_ms,
        sequence.segment_len, sequence.num_slots, sequence.deduplicate, MAX_IDS, action.max_future_ms,
    )  # fmt: skip


def stream_of(
    seed: int, num_records: int, num_users: int = 4, num_items: int = 5, step_ms: int = 40, *, forgets: bool = False
) -> list[Record]:
    """A log with joins, duplicates, late actions, lists, jumps in time and records that are not actions; with
    ``forgets`` also some to forget users or an item."""
    rng = random.Random(seed)
    now, offset, log = 1_000, 0, []
    for _ in range(num_records):
        now += rng.choice((0, 0, 1, rng.randrange(step_ms), rng.randrange(step_ms), 8 * rng.randrange(step_ms)))
        dice = rng.random()
        value: bytes | None
        if forgets and rng.random() < 0.08:
            value = json.dumps(_order(rng, num_users, num_items, offset)).encode()
        elif dice < 0.05:
            value = rng.choice((b"", None, b"{nonsense", b'"text"', b"[3]", b'{"user":"u1"}'))
        elif dice < 0.30:
            actions = [_action(rng, now, num_users, num_items, step_ms) for _ in range(rng.randrange(1, 12))]
            value = json.dumps(actions).encode()
        else:
            value = json.dumps(_action(rng, now, num_users, num_items, step_ms)).encode()
        log.append((offset, now, None, value))
        offset += rng.choice((1, 1, 1, 2, 5))
    return log


def _order(rng: random.Random, num_users: int, num_items: int, offset: int) -> dict[str, Any]:
    dice = rng.random()
    if dice < 0.3:
        return {"forget": rng.random() < 0.6, "item": rng.randrange(num_items)}
    if dice < 0.65:
        names = [name for user in range(num_users) for name in (f"u{user}", str(user))]
        some = rng.sample(names, rng.randrange(1, len(names) + 1))
        return {"forget": True, "users": some, "before_offset": max(0, offset - rng.randrange(12))}
    user = rng.randrange(num_users)
    return {"forget": True, "user": rng.choice((f"u{user}", str(user)))}


def _action(rng: random.Random, now: int, num_users: int, num_items: int, step_ms: int) -> dict[str, Any]:
    late = rng.choice((0, 0, 0, rng.randrange(step_ms), rng.randrange(20 * step_ms)))
    action: dict[str, Any] = {
        "user": rng.choice((f"u{rng.randrange(num_users)}", rng.randrange(num_users))),
        "item": rng.choice((rng.randrange(num_items), str(rng.randrange(num_items)))),
        "action": rng.choice(("see", "click", ["see"], ["click", "like"])),
        "timestamp": max(0, now - late),
    }
    if rng.random() < 0.4:
        action["id"] = rng.randrange(30)
    if rng.random() < 0.3:
        action["session"] = rng.randrange(2)
    if rng.random() < 0.3:
        action["value"] = rng.randrange(-4, 10) / 2
    if rng.random() < 0.3:
        action["features"] = {rng.choice(("genre", "maker", "other")): rng.choice(("x", 3))}
    if rng.random() < 0.2:
        action["domain"] = rng.choice(("food", "film"))
    if rng.random() < 0.2:
        action["propensity"] = rng.choice((1, 0.25, 1e-9))
    if rng.random() < 0.1:
        action["user_features"] = {"land": rng.choice(("li", "at"))}
    if rng.random() < 0.04:
        action |= rng.choice(({"action": "yawn"}, {"timestamp": now + 10_000_000}))
    if rng.random() < 0.02:
        del action["item"]
    return action


def _stand_still(store: PartitionStore) -> None:
    """Prevent compaction while files are copied."""
    database = store._db._db
    assert database is not None
    database.cancel_all_background(True)


def read_user(store: PartitionStore, name: str) -> list[Example]:
    """A user's current segments, oldest first."""
    sequencer, emitter = store._sequencer, store._sequencer._emitter
    user = sequencer.users.get(name) or store._users.load(name)
    if user is None:
        return []
    emitter.complete(user)
    lengths = {user.tail.index: len(user.tail)}
    return [
        view(*emitter.draft(user, index, 0, lengths.get(index, store._sequence.segment_len), 0, -1, {}))
        for index in range(user.first_segment, user.tail.index + 1)
    ]


@dataclass
class World:
    """The log, a store in a folder, the topic that its relay writes to, and a reader that trains on it."""

    folder: Path
    log: list[Record]
    sequence: SequenceConfig
    store_config: StoreConfig = field(default_factory=StoreConfig)
    topic: list[tuple[str, bytes | None]] = field(default_factory=list)
    """(key, value), fences and tombstones included."""
    dead: list[tuple[int, int, str]] = field(default_factory=list)
    num_folders: int = 0
    claimed_at: int = 0
    """The position of the last claim's fence in the topic."""
    settled_at: int = 0
    """The last claim whose rewritten records have all been relayed."""

    def __post_init__(self) -> None:
        self.store = self._open()
        self.epoch = 0
        self.claim()

    def _open(self) -> PartitionStore:
        return PartitionStore.open(self.folder / f"db{self.num_folders}", 0, ACTION, self.sequence, self.store_config)

    # What can happen

    def apply(self, num_records: int, overlap: int = 0) -> None:
        """Apply the next records after the store's offset, repeating some."""
        first = next((i for i, r in enumerate(self.log) if r[0] > self.store.applied_offset), len(self.log))
        self.store.apply(self.log[max(0, first - overlap) : first + num_records])

    def relay(self, num_entries: int, *, acked: bool = True) -> None:
        """Send some of the outbox; if that is not recorded, it will be sent again."""
        entries = self.store.outbox(limit=max(1, num_entries))
        for entry in entries:
            if entry.is_example:
                self.topic.append((entry.key.decode(), entry.value))
            else:
                headers = {name: text.decode() for name, text in entry.headers}
                self.dead.append((int(headers["offset"]), int(headers["index"]), headers["reason"]))
        if acked and entries:
            self.store.ack(entries[-1].index, len(self.topic))
            self._settle()

    def _settle(self) -> None:
        if not self.store.outbox_len:
            self.settled_at = self.claimed_at

    def crash(self) -> None:
        """Lose the process: only what is on the disk is left."""
        old, self.num_folders = self.folder / f"db{self.num_folders}", self.num_folders + 1
        _stand_still(self.store)
        shutil.copytree(old, self.folder / f"db{self.num_folders}")
        self.store.close()
        shutil.rmtree(old)
        self.store = self._open()
        self.claim()

    def wipe(self, rng: random.Random) -> None:
        """Lose the disk: restore from the topic, as compacted."""
        self.store.close()
        shutil.rmtree(self.folder / f"db{self.num_folders}")
        self.store = self._open()
        self.claim(restore=self.compacted(rng))

    def ghost(self, rng: random.Random) -> None:
        """A worker that has lost the partition without knowing it continues to apply and write."""
        copy = self.folder / "ghost"
        _stand_still(self.store)
        shutil.copytree(self.folder / f"db{self.num_folders}", copy)
        self.claim()
        ghost = PartitionStore.open(copy, 0, ACTION, self.sequence, self.store_config)
        first = next((i for i, r in enumerate(self.log) if r[0] > ghost.applied_offset), len(self.log))
        ghost.apply(self.log[first : first + rng.randrange(1, 6)])
        most = rng.choice((rng.randrange(1, 5), 1000))
        self.topic += [(e.key.decode(), e.value) for e in ghost.outbox(limit=most) if e.is_example]
        ghost.close()
        shutil.rmtree(copy)

    def claim(self, restore: list[tuple[str, bytes | None]] | None = None) -> None:
        """Fence off the previous writer, and write again what it or a repeat has overwritten."""
        self.epoch += 1
        self.claimed_at = len(self.topic)
        self.topic.append(("", encode_example(fence(0, self.epoch))))
        log = ExampleLog(None, allow_gaps=True)
        if restore is None:
            list(accepted(log, self.topic))
        else:
            self.store.restore(accepted(log, [*restore, self.topic[-1]]))
        self.store.set_writer_epoch(self.epoch)
        self.store.refresh(sorted(log.overwritten), sorted(log.buried))
        self._settle()

    def compacted(self, rng: random.Random) -> list[tuple[str, bytes | None]]:
        """Keep only each key's newest record up to some point: one by which everything that a ghost or a repeat has
        overwritten has been written again, since that is quicker than the compaction lag."""
        log, points, spoiled, counting = ExampleLog(None, allow_gaps=True), [0], set[str](), set[str]()
        for i, (key, value) in enumerate(self.topic):
            example = None if value is None else decode_example(value)
            verdict = Verdict.DUPLICATE if example is None else log.feed(example)
            for user in example.forgotten if verdict is Verdict.ACCEPT and example is not None else ():
                gone = {each for each in counting if each.startswith(f"{user}\0")}
                counting, spoiled = counting - gone, spoiled - gone  # as the tombstones before it say
            if verdict is Verdict.ACCEPT:
                counting.add(key)
                spoiled.discard(key)
            elif verdict is not Verdict.FENCE and key in counting:
                spoiled.add(key)
            if not spoiled or i < self.settled_at:
                points.append(i + 1)
        return self.left_of(rng.choice(points))

    def left_of(self, point: int) -> list[tuple[str, bytes | None]]:
        """The topic after compaction of the records before ``point``."""
        newest = {key: i for i, (key, _) in enumerate(self.topic[:point])}
        return [(k, v) for i, (k, v) in enumerate(self.topic) if i >= point or k == "" or newest[k] == i]

    def finish(self) -> None:
        """Apply and relay everything that is left."""
        self.store.apply(self.log)
        while self.store.outbox_len:
            self.relay(1_000)

    # Checks

    def accepted(self) -> list[Example]:
        """What a trainer reads from the topic; a gap fails the test."""
        log, examples = ExampleLog(), []
        for example in (decode_example(value) for _, value in self.topic if value is not None):
            verdict = log.feed(example)
            assert verdict is not Verdict.GAP, log.gap
            if verdict is Verdict.ACCEPT:
                examples.append(example)
        return examples

    def check(self) -> None:
        """Check everything against the oracle, and what each example promises."""
        oracle = self.check_told()
        self._check_users(oracle)
        counts = self.store.counts
        assert counts == (oracle.accepted, oracle.duplicate, len(oracle.dead), oracle.late)
        assert Counter(set(self.dead)) == Counter(oracle.dead)
        assert self.store.applied_offset == self.log[-1][0]

    def check_told(self) -> Oracle:
        """Check that the examples say what the oracle says."""
        oracle = oracle_for(self.sequence)
        oracle.moments = {}
        for offset, record_ms, _, value in self.log:
            oracle.record(offset, record_ms, value)
        self._check_emitted(oracle)
        return oracle

    def _check_emitted(self, oracle: Oracle) -> None:
        """Check that each example is its segment at one moment, and teaches what none before it has taught."""
        assert oracle.moments is not None
        learned: dict[str, list[int]] = {}
        names: dict[int, str | int] = {}
        length = self.sequence.segment_len
        for example in self.accepted():
            names |= example.names if example.mark is None else {}
            if example.mark is not None:
                assert not len(example.interactions)
                for user in example.forgotten:
                    learned.pop(user, None)
                continue
            moment = oracle.moments[example.user, example.user_offset, example.user_index]
            first, rows = example.first_index, rows_of(example)
            assert rows == [token.key() for token in moment.tokens[first : first + len(rows)]]
            assert rows
            assert len(rows) == length or example.segment > (len(moment.tokens) - 1) // length - NUM_OPEN
            assert ids_of(example) == [hashed(moment.ids.get(first + at, [])) for at in range(len(rows))]
            assert example.user_feature_hash.tolist() == [moment.user_features.get("land", 0)]
            assert {row[0] for row in rows} <= names.keys()
            assert example.resume_from_offset <= example.applied_offset + 1
            self._learn(learned.setdefault(example.user, []), example)
        assert learned == {user: [token.bits for token in life.tokens] for user, life in oracle.users.items()}

    def _learn(self, learned: list[int], example: Example) -> None:
        bits = example.interactions.action_bits.tolist()
        assert example.first_new_index == len(learned) or not example.num_new
        learned += bits[len(bits) - example.num_new :]
        places = example.feedback_index.tolist()
        assert places == sorted(set(places))
        for place, new_bits in zip(places, example.feedback_bits.tolist(), strict=True):
            assert place < len(bits) - example.num_new
            assert new_bits
            assert not learned[example.first_index + place] & new_bits
            learned[example.first_index + place] |= new_bits

    def _check_users(self, oracle: Oracle) -> None:
        for user in {each for _, value in self.topic if value for each in [decode_example(value).user]}:
            assert user in oracle.users or not read_user(self.store, user)
        for user, life in oracle.users.items():
            segments = read_user(self.store, user)
            assert [example.segment for example in segments] == list(
                range(oracle.first_kept(life), oracle.first_kept(life) + len(segments))
            )
            assert [row for example in segments for row in rows_of(example)] == [t.key() for t in oracle.kept(life)]
            for example in segments:
                places = range(example.first_index, example.first_index + len(example.interactions))
                assert ids_of(example) == [hashed(life.ids.get(place, [])) for place in places]
                assert example.user_feature_hash.tolist() == [life.user_features.get("land", 0)]


def accepted(log: ExampleLog, topic: Iterable[tuple[str, bytes | None]]) -> Iterator[Example]:
    """What counts, as `stream.claim` reads it."""
    for key, value in topic:
        if value is None:
            log.bury(address_of_key(key.encode()))
        elif log.feed(example := decode_example(value)) is Verdict.ACCEPT:
            yield example


def ids_of(example: Example) -> list[list[int]]:
    """The ids of each interaction."""
    ids, counts = example.action_ids.tolist(), example.id_counts.tolist() or [0] * len(example.interactions)
    ends = np.cumsum(counts).tolist()
    return [ids[end - count : end] for end, count in zip(ends, counts, strict=True)]


def hashed(names: list[str]) -> list[int]:
    return [key_hash(name) for name in names]
