"""Records decoded in batches in C++ equal those decoded one by one, and fold into the same histories."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from kernels.examples import GOOD, OTHER, TOMBSTONE, decode_block
from serving.users.catalogue import Conditions
from serving.users.histories import Histories
from state.sequencer import Sequencer
from tests.state.world import ACTION, stream_of
from wire.action import Action, decode_record
from wire.config import SequenceConfig
from wire.example import Interactions, fence, interactions_of, row_type
from wire.example_codec import decode_example, encode_example, pack
from wire.kafka import decompression
from wire.kafka.batches import Batch, _WholeBatches

FEATURES = ACTION.num_columns


def told(seed: int, segment_len: int = 4) -> list[bytes]:
    """Records of a made-up log."""
    rng = random.Random(seed)
    sequencer = Sequencer(ACTION, SequenceConfig(join_window_s=0.2, max_context=9, segment_len=segment_len))
    sequencer.writer_epoch = 3
    values = [encode_example(fence(0, 3))]
    for offset, record_ms, _, value in stream_of(seed, 300, num_users=6):
        for index, one in enumerate(decode_record(value, record_ms, ACTION)):
            if isinstance(one, Action):
                sequencer.apply(one, offset, record_ms, index)
        if rng.random() < 0.5:
            values += [pack(*draft) for draft in sequencer.drain_drafts()]
    return values + [pack(*draft) for draft in sequencer.drain_drafts()]


def batched(
    values: Sequence[bytes | None], first: int = 0, size: int = 7, headers: Sequence[tuple[str, bytes | None]] = ()
) -> list[Batch]:
    """The records in batches, as from a broker."""
    raw = b""
    for at in range(0, len(values), size):
        builder = DefaultRecordBatchBuilder(2, 4, False, -1, -1, -1, 1 << 20)
        for place, value in enumerate(values[at : at + size]):
            builder.append(place, 1, b"key", value, list(headers))
        one = bytearray(builder.build())
        one[:8] = (first + at).to_bytes(8, "big")
        raw += bytes(one)
    reader, batches = _WholeBatches(MemoryRecords(raw)), []
    while (batch := reader.next_batch()) is not None:
        batches.append(batch.value)
    return batches


def test_the_headers_of_a_record_are_read() -> None:
    headers = [("shape", b"x" * 300), ("empty", b""), ("none", None), ("ü", b"\0")]
    block = decode_block(batched([*told(0)[:3], None], headers=headers), row_type(FEATURES))
    expected = {"shape": b"x" * 300, "empty": b"", "none": b"", "ü": b"\0"}
    assert [block.headers(record) for record in range(4)] == [expected] * 4
    assert decode_block(batched([b"", b"x"]), row_type(0)).headers(0) == {}


def same(one: Interactions, other: Interactions) -> bool:
    return all(
        np.array_equal(getattr(one, each.name), getattr(other, each.name), equal_nan=each.name == "value")
        for each in fields(Interactions)
    )


@pytest.mark.parametrize("segment_len", [1, 4, 300])
def test_each_record_is_what_the_codec_says(segment_len: int) -> None:
    values = told(segment_len, segment_len)[1:]
    block = decode_block(batched(values, first=40), row_type(FEATURES))
    assert (block.heads["status"] == GOOD).all()
    assert block.heads["offset"].tolist() == list(range(40, 40 + len(values)))
    for head, value in zip(block.heads, values, strict=True):
        example, at = decode_example(value), int(head["rows_at"])
        assert same(interactions_of(block.rows[at : at + int(head["num"])]), example.interactions)
        user = block.data[int(head["user_at"]) :][: int(head["user_len"])].decode()
        own = np.frombuffer(block.data, "<i8", int(head["num_user_features"]), int(head["user_features_at"]))
        assert (user, own.tolist()) == (example.user, example.user_feature_hash.tolist())
        for name in ("number", "writer_epoch", "segment", "segment_len", "first", "newest_event_ms", "partition"):
            assert head[name] == getattr(example, name)


def test_what_is_no_example_is_left_to_the_codec_whatever_was_done_to_it() -> None:
    rng, values = random.Random(1), told(9)
    broken: list[bytes | None] = []
    for value in values[1:]:
        content = bytearray(value)
        match rng.randrange(3):
            case 0:
                content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
            case 1:
                del content[rng.randrange(len(content)) :]
            case 2:
                content += b"\0"
        broken.append(bytes(content))
    block = decode_block(batched([*broken, None, values[0]]), row_type(FEATURES))
    assert block.heads["status"].tolist() == [OTHER] * len(broken) + [TOMBSTONE, OTHER], "a fence is none either"
    assert [block.value(place) for place in range(len(broken))] == broken


def test_bytes_that_are_no_batch_are_refused() -> None:
    (batch, *_) = batched(told(2))
    for data in (batch.data[:-1], bytes(batch.data) + b"\0", bytes(90)):
        with pytest.raises(ValueError, match="batches"):
            decode_block([(0, batch.num_records, data)], row_type(FEATURES))


def test_negative_numbers_of_records_are_refused() -> None:
    """The sum would be that of fewer records than there are."""
    (batch, *_) = batched(told(2))
    with pytest.raises(ValueError, match="batches, got -6"):
        decode_block([batch, (9, -6, b"")], row_type(FEATURES))


@pytest.mark.parametrize("at", [0, 2])
def test_a_batch_that_is_not_whole_costs_no_other_record(at: int) -> None:
    """Whether anything is known yet or not."""
    values = told(3)
    whole, whose = batched(values), Histories(1 << 30)
    spoiled = list(whole)
    spoiled[at] = whole[at]._replace(data=bytes(whole[at].data) + b"more")
    for batches, histories in ((whole, (expected := Histories(1 << 30))), (spoiled, whose)):
        histories.feed_batches(0, batches[:2])
        histories.feed_batches(0, batches[2:])
        histories.feed_batches(0, [batches[0]._replace(data=b"nothing")])
    users = expected.newest_users(99)
    assert users == whose.newest_users(99) != []
    for user in users:
        ours, theirs = whose.get(user), expected.get(user)
        assert ours is not None
        assert theirs is not None
        assert ours.interactions.item_hash.tolist() == theirs.interactions.item_hash.tolist()


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_records_that_are_lost_with_a_part_of_a_batch_are_no_gap(
    part: float, at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A gap would have all histories dropped and read again. It counts as one foreign record."""
    monkeypatch.setattr(decompression, "_num_told", 0)
    batches, histories = batched(told(3)), Histories(1 << 30)
    histories.is_complete = True
    batches[at] = batches[at]._replace(data=bytes(batches[at].data[: int(len(batches[at].data) * part)]))
    for batch in batches[:5]:
        histories.feed_batches(0, [batch])
    assert (histories.missing, histories.num_foreign) == ("", 1)
    assert len(histories) > 3
    assert f"got one at offsets {7 * at} to {7 * at + 6} that" in caplog.text
    histories.feed_batches(0, batches[6:7])
    assert histories.missing == f"partition 0 lacks {batches[5].num_records} examples from number 34 on"


def test_headers_that_are_cut_off_say_nothing() -> None:
    (batch, *_) = batched([b"x"], headers=[("shape", b"{}")])
    block = decode_block([batch], row_type(FEATURES))
    assert block.headers(0) == {"shape": b"{}"}
    for num in range(1, 9):
        assert replace(block, data=bytes(block.data[:-num])).headers(0).get("shape") in (None, b"", b"{")


@pytest.mark.parametrize("seed", range(6))
def test_histories_fed_by_batches_are_those_fed_record_by_record(seed: int, tmp_path: Path) -> None:
    rng, values = random.Random(seed), told(seed)
    # A new owner, a repeat and a damaged record: records that do not count must be skipped.
    values[50:50] = [encode_example(fence(0, 4)), values[20], values[30], b"nonsense"]
    values[51:] = [value if value == b"nonsense" else _under(value, 4) for value in values[51:]]
    one, other = Histories(1 << 20, max_context=9), Histories(1 << 20, max_context=9)
    for value in values:
        one.feed(0, value)
    batches = batched(values, size=rng.choice((1, 3, 20)))
    while batches:
        num = rng.randrange(1, 9)
        other.feed_batches(0, batches[:num])
        del batches[:num]
    assert len(one) == len(other) > 3
    assert (one.num_bytes, one.clock_ms, one.num_foreign) == (other.num_bytes, other.clock_ms, other.num_foreign)
    for user in one.newest_users(100):
        ours, theirs = one.get(user), other.get(user)
        assert ours is not None
        assert theirs is not None
        assert same(ours.interactions, theirs.interactions)
        assert ours.user_features.tolist() == theirs.user_features.tolist()
        items = ours.interactions.item_hash
        assert np.array_equal(one.items.features_of(items, FEATURES), other.items.features_of(items, FEATURES))
        for domain in set(ours.interactions.domain_hash.tolist()):
            asked = Conditions(domains=(domain,), first_until_ms=int(ours.interactions.timestamp_ms[-1]))
            assert set(one.items.fulfilling(asked).tolist()) == set(other.items.fulfilling(asked).tolist())
    assert one.newest_users(100) == other.newest_users(100)


def _under(value: bytes, epoch: int) -> bytes:
    from wire.example_codec import restamp

    return restamp(value, epoch)
