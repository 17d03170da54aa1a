"""The compiled sequencer writes what the definition writes, to the bit, whatever the records are."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernels.sequences
from kernels.compiled import KernelUnavailable
from kernels.sequences import NOT_DECODED, Sequences
from state.compiled import rules_of
from state.config import StoreConfig
from state.errors import StoreCorrupt, StoreError
from state.store import PartitionStore, Record
from state.user_store import UserStore
from tests.state.test_promises import MEMORY, SEQUENCES
from tests.state.world import ACTION, stream_of
from wire.action import decode_record
from wire.config import SequenceConfig

ROOT = Path(__file__).resolve().parents[2]
KEYS = (
    "x", "ä", "日本語", "🎬", "a" * 31, "a" * 32, "b" * 64, "c" * 65, "ü" * 128, "d" * 256, "e" * 257, 0, -1, -33, 7,
    300, -40_000, 5_000_000_000, 2**63 - 1, 2**63, -(2**63), "tab\t", 'quote"', "\0", "", None, True, 5.0, 5.5, 1e300,
    -0.0, [], {},
)  # fmt: skip
"""Of users, items, ids, sessions, domains and features; many are refused."""
TEXTS = (
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"user":"u2"}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"more":{"deep":[1,{"er":null}]}}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"forget":true}',
    b'{"user":"u1","item":01,"action":"see","timestamp":%d}',
    b'{"user":"u1","item":-0,"action":"see","timestamp":%d}',
    b'{"user":"u1","item":1,"action":["see","see"],"timestamp":%d.0}',
    b'{"user":"u1","item":"\\u0061","action":"see","timestamp":%d}',
    b'{"user":"u\xff","item":1,"action":"see","timestamp":%d}',
    b'{"user":"\xed\xa0\x80","item":1,"action":"see","timestamp":%d}',
    b'{"user":"u1","item":1,"action":[],"timestamp":%d}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"value":3.4028235e38}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"value":1e-400}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"value":-0}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"propensity":1e-400}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"propensity":2.5E-1,"user_features":{"land":"no"}}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"propensity":1,"propensity":1}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"value":-0.1E+1,"features":{"genre":"a","genre":"b"}}',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d,"features":{"other":"","genre":null}}',
    b' {"user":"u1","item":1,"action":"see","timestamp":%d}',
    b'[ {"user" : "u1" , "item":1,"action":[ "see" ],"timestamp":%d , "value":null } ] ',
    b'[{"user":"u1","item":1,"action":"see","timestamp":%d},]',
    b'{"user":"u1","item":1,"action":"see","timestamp":%d}x',
)
"""What JSON allows, and what it does not."""


def hostile_of(seed: int, num_records: int) -> list[Record]:
    """`stream_of` with strange keys and texts, and bytes that were damaged on the way."""
    rng = random.Random(seed)
    return [
        (offset, record_ms, key, _spoiled(rng, value or b"", record_ms))
        for offset, record_ms, key, value in stream_of(seed, num_records, forgets=True)
    ]


def _spoiled(rng: random.Random, value: bytes, record_ms: int) -> bytes:
    dice = rng.random()
    if dice < 0.2:
        return rng.choice(TEXTS) % record_ms
    if dice < 0.5 and value.startswith(b'{"user'):
        content: dict[str, Any] = json.loads(value)
        for field in rng.sample(
            ("user", "item", "id", "session", "domain", "value", "propensity"), rng.randrange(1, 4)
        ):
            content[field] = rng.choice(KEYS)
        content["features"] = {rng.choice(("genre", "maker", "ä")): rng.choice(KEYS)}
        text = json.dumps(content, ensure_ascii=rng.random() < 0.3).encode()
        return b"[" + text + b"," + text + b"]" if rng.random() < 0.5 else text
    if dice < 0.7 and value:
        damaged = bytearray(value)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(damaged) + 1)
            damaged[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        return bytes(damaged)
    return value


def written(store: PartitionStore) -> dict[bytes, bytes]:
    """Everything in the database."""
    return dict(store._db.under(b""))


def both(folder: Path, sequence: SequenceConfig, log: list[Record], rng: random.Random) -> None:
    """The same life by C++ and by the definition: batches, restarts, acknowledgements."""
    max_users, num_partitions = rng.choice((1, 2, 100)), rng.choice((None, 2))
    configs = [StoreConfig(backend=backend, max_cached_users=max_users) for backend in ("cpp", "python")]
    action = replace(ACTION, user_tokens=rng.random() < 0.5, propensity=rng.random() < 0.5)

    def opened() -> list[PartitionStore]:
        return [
            PartitionStore.open(folder / config.backend, 0, action, sequence, config, num_partitions=num_partitions)
            for config in configs
        ]

    stores, at = opened(), 0
    try:
        while at < len(log):
            end = at + rng.randrange(1, 15)
            told = [store.apply(log[max(0, at - rng.choice((0, 2))) : end]) for store in stores[:1]]
            told.append(stores[1].apply(log[at:end]))
            assert told[0].counts == told[1].counts
            assert told[0].num_examples == told[1].num_examples
            assert stores[0].outbox() == stores[1].outbox()
            assert written(stores[0]) == written(stores[1])
            at = end
            if stores[0].outbox_len and rng.random() < 0.3:
                for store in stores:
                    store.ack(store.outbox(limit=rng.choice((1, 5)))[0].index)
            if rng.random() < 0.2:
                for store in stores:
                    store.close()
                stores = opened()
    finally:
        for store in stores:
            store.close()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(sequence=SEQUENCES, seed=st.integers(0, 2**32), is_hostile=st.booleans())
def test_cpp_writes_what_the_definition_writes(sequence: SequenceConfig, seed: int, is_hostile: bool) -> None:
    log = hostile_of(seed, 60) if is_hostile else stream_of(seed, 60, forgets=True)
    with TemporaryDirectory(dir=MEMORY) as folder:
        both(Path(folder), sequence, log, random.Random(seed))


def test_a_worker_does_not_load_torch() -> None:
    code = "import sys, stream.worker, kernels.compiled; kernels.compiled.load(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split()[-1] == "False"


def test_what_is_usual_is_decoded_in_cpp() -> None:
    log = [record for seed in range(20) for record in stream_of(seed, 50)]
    sequences = Sequences(rules_of(ACTION, SequenceConfig(), 0, None))
    ranges = sequences.decode([value or b"" for *_, value in log], [record_ms for _, record_ms, *_ in log])
    for (_, record_ms, _, value), (first, last) in zip(log, ranges, strict=True):
        decoded = decode_record(value, record_ms, ACTION)
        is_sound = all(type(one).__name__ == "Action" for one in decoded)
        assert (first != NOT_DECODED) == is_sound, value
        assert first == NOT_DECODED or last - first == len(decoded)


def test_missing_kernels_are_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise KernelUnavailable("expected the compiled kernels")

    monkeypatch.setattr(kernels.sequences, "baseline", missing)
    with pytest.raises(StoreError, match=r'expected the compiled kernels; or set store.backend = "python"'):
        PartitionStore.open(tmp_path, 0, ACTION, SequenceConfig())
    PartitionStore.open(tmp_path, 0, ACTION, SequenceConfig(), StoreConfig(backend="python")).close()


def test_a_user_whose_bytes_are_damaged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = b'{"user":"u","item":1,"action":"see","timestamp":%d}'
    store = PartitionStore.open(tmp_path, 0, ACTION, SequenceConfig())
    store.apply([(0, 1_000, None, value % 1)])
    stored = store.users.stored(["u"])
    store.close()
    store = PartitionStore.open(tmp_path, 0, ACTION, SequenceConfig())
    damaged = [(name, encoded[:-1]) for name, encoded in stored]
    monkeypatch.setattr(UserStore, "stored", lambda self, names: damaged)
    with pytest.raises(StoreCorrupt, match="user 'u'"):
        store.apply([(1, 1_000, None, value % 2)])
