"""Keys, hashes and partitions agree with what producers in other languages compute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as kafka_murmur2
from xxhash import xxh3_64_intdigest

from state.config import StoreConfig
from wire.action import Rejection, decode_record
from wire.config import ActionConfig, KafkaConfig, SequenceConfig, check_sizes
from wire.errors import ConfigError, HeadraceError
from wire.hashing import canonical, item_hash
from wire.partitioner import murmur2, partition_of
from wire.status import PartitionStatus, ServerStatus, WorkerStatus, decode_status, encode_status
from wire.topics import Topics, fence_key, topics_of


@given(st.binary(max_size=40))
def test_murmur2_is_what_kafka_clients_compute(data: bytes) -> None:
    assert murmur2(data) == kafka_murmur2(data) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829), (b"abc", 479470107),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)  # fmt: skip
def test_murmur2_gives_the_values_of_kafkas_java_client(key: bytes, value: int) -> None:
    assert murmur2(key) == value & 0xFFFFFFFF


@given(st.binary(max_size=20), st.integers(1, 100))
def test_a_partition_is_below_their_number(key: bytes, num_partitions: int) -> None:
    assert 0 <= partition_of(key, num_partitions) < num_partitions


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_and_its_text_are_the_same_key(number: int) -> None:
    assert canonical(number) == canonical(str(number))
    assert item_hash(number) == item_hash(str(number))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_an_item_hash_is_xxh3_as_signed_and_never_zero(key: str) -> None:
    assert item_hash(key) % 2**64 in (xxh3_64_intdigest(key.encode()), 1)
    assert -(2**63) <= item_hash(key) < 2**63
    assert item_hash(key) != 0


@pytest.mark.parametrize("key", [True, 1.5, None, b"x"])
def test_other_types_are_not_keys(key: object) -> None:
    with pytest.raises(TypeError, match="expected a string or an integer"):
        canonical(key)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ActionConfig(kinds=()), "kinds"),
        (lambda: ActionConfig(kinds=("a", "a")), "kinds"),
        (lambda: ActionConfig(kinds=tuple(map(str, range(33)))), "kinds"),
        (lambda: ActionConfig(features=("",)), "features"),
        (lambda: ActionConfig(max_future_s=-1), "max_future_s"),
        (lambda: ActionConfig(max_record_bytes=0), "max_record_bytes"),
        (lambda: KafkaConfig(max_message_bytes=1000), "max_message_bytes"),
        (lambda: ActionConfig(max_actions_per_record=0), "max_actions_per_record"),
        (lambda: SequenceConfig(join_window_s=-1), "join_window_s"),
        (lambda: SequenceConfig(max_context=0), "max_context"),
        (lambda: SequenceConfig(segment_len=0), "segment_len"),
        (lambda: SequenceConfig(segment_len=4097), "segment_len"),
        (lambda: StoreConfig(max_cached_users=0), "max_cached_users"),
        (lambda: StoreConfig(block_cache_bytes=1), "block_cache_bytes"),
        (lambda: KafkaConfig(bootstrap=""), "bootstrap"),
        (lambda: KafkaConfig(partitions=0), "partitions"),
        (lambda: KafkaConfig(prefix="a b"), "prefix"),
        (lambda: KafkaConfig(min_compaction_lag_s=0), "min_compaction_lag_s"),
        (
            lambda: check_sizes(ActionConfig(features=tuple("abcdefghij")), SequenceConfig(segment_len=4096)),
            "segment_len",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_what_would_be_right(make: object, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^(?:[a-z]+\.)?{key}.*: expected .*, got .*; ") as caught:
        make()  # type: ignore[operator]
    assert isinstance(caught.value, HeadraceError)
    assert isinstance(caught.value, ValueError)


def test_defaults_are_fine() -> None:
    check_sizes(ActionConfig(), SequenceConfig())
    assert SequenceConfig().join_window_ms == 60_000
    assert ActionConfig().max_future_ms == 300_000


def test_topics_have_their_names_and_settings() -> None:
    topics = {topic.name: topic for topic in topics_of(KafkaConfig(partitions=3))}
    names = Topics.under()
    assert list(topics) == [
        "headrace.actions.v1", "headrace.actions.v1.dlq", "headrace.sequences.v1", "headrace.weights.v1",
        "headrace.trainer.lag.v1", "headrace.status.v1", "headrace.control.v1",
    ]  # fmt: skip
    assert topics[names.actions].num_partitions == topics[names.sequences].num_partitions == 3
    assert topics[names.sequences].settings["cleanup.policy"] == "compact"
    assert int(topics[names.sequences].settings["min.compaction.lag.ms"]) == 86_400_000
    assert topics[names.dead_letters].num_partitions == 1
    assert {topic.settings["message.timestamp.type"] for topic in topics.values()} == {"LogAppendTime"}
    room = [int(topics[name].settings["max.message.bytes"]) for name in (names.actions, names.dead_letters)]
    assert room == [1_048_588, 1_048_588 + 65_536]


def test_each_epoch_has_its_own_fence_key_that_no_user_can_have() -> None:
    assert fence_key(1) != fence_key(2)
    [refused] = decode_record(b'{"user":"\\u0000fence/7","item":1,"action":"click","timestamp":1}', 1, ActionConfig())
    assert isinstance(refused, Rejection)
    assert fence_key(7) == b"\x00fence/7"


@pytest.mark.parametrize(
    "status",
    [
        WorkerStatus(component="w", time_ms=5, partitions={0: PartitionStatus(applied_offset=3), 2: PartitionStatus()}),
        ServerStatus(component="s", time_ms=5, epoch=1, number=2),
    ],
)
def test_a_status_survives_the_round_trip(status: WorkerStatus | ServerStatus) -> None:
    assert decode_status(encode_status(status)) == status
