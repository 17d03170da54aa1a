"""A segment's bytes are those of the codec, whatever its columns hold."""

from __future__ import annotations

import itertools
import random
import struct

import numpy as np
import pytest

from state.emitter import Emitter
from state.names import Names
from state.segment import Segment, holds
from state.segment_codec import COLUMNS_START, cut, describe, may_hold, unpack
from state.segment_codec import pack as pack_segment
from state.sequencer import Sequencer
from tests.state.test_sequencer import ACTION
from wire.action import Action
from wire.config import MAX_IDS, SequenceConfig
from wire.example_codec import decode_example, encode_example, pack, view

NOTHING = float("nan")


def hash_bytes(number: int) -> bytes:
    return number.to_bytes(8, "little", signed=True)


def action(rng: random.Random, wide: bool) -> Action:
    many = 1 << 40 if wide else 5_000
    return Action(
        user="u", item=0, item_hash=rng.choice((1, -7, 2**63 - 1, -(2**63))),
        bits=rng.choice((1, 2, 255, 256, 1 << 31)), timestamp_ms=rng.randrange(many),
        id_hash=rng.choice((0, rng.getrandbits(60))), session_hash=rng.choice((0, 0, 5)),
        domain_hash=rng.choice((0, 0, 9)), value=rng.choice((NOTHING, NOTHING, 0.1, -0.0)),
        feature_hash=(rng.choice((0, 3)), 0),
        user_feature_hash=(rng.choice((0, 4)),),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_what_a_worker_writes_is_what_the_codec_would_write(seed: int) -> None:
    rng = random.Random(seed)
    sequence = SequenceConfig(join_window_s=rng.choice((0.0, 2.0)), segment_len=rng.choice((1, 5, 16, 300)))
    sequencer = Sequencer(ACTION, sequence)
    for offset in range(rng.choice((1, 5, 40, 400))):
        sequencer.apply(action(rng, wide=seed % 3 == 0), offset, 9)
    for header, columns in sequencer.drain_drafts():
        value = pack(header, columns)
        assert encode_example(decode_example(value)) == value
        segment = Segment.of(view(header, columns))
        part = cut(segment, header.first, len(segment))
        assert columns.startswith(part.columns)
        assert (part.num, part.num_ids, part.flags, part.bits_width) == (
            header.num_interactions, header.num_ids, header.flags, header.bits_width,
        )  # fmt: skip
        stored = pack_segment(segment)
        assert pack_segment(unpack(header.segment, stored, 2)) == stored
        again = unpack(header.segment, stored, 2)
        again.packed = None
        assert pack_segment(again) == stored
        assert describe(stored)[1] == header.first + header.num_interactions
        with pytest.raises(ValueError, match="another one"):
            unpack(header.segment + 1, stored, 2)


def test_pieces_put_together_in_any_order_are_the_segment() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        sequence = SequenceConfig(join_window_s=0, segment_len=40)
        sequencer = Sequencer(ACTION, sequence)
        for offset in range(30):
            sequencer.apply(action(rng, wide=False), offset, 9)
            if rng.random() < 0.5:
                sequencer.drain_drafts()
        (user,) = sequencer.users.values()
        whole = pack_segment(user.tail)
        pieces, emitter = [], Emitter(ACTION, sequence, 0, None, Names())
        ends = [0, *sorted(rng.sample(range(1, 30), 5)), 30]
        for first, end in itertools.pairwise(ends):
            pieces.append(view(*emitter.draft(user, 0, first, end, 0, 9, {})))
        rng.shuffle(pieces)
        again = Segment(0, 2)
        for piece in pieces:
            again.put(piece)
        assert pack_segment(again) == whole


def test_an_interaction_forgets_its_oldest_ids() -> None:
    segment, rng = Segment(0, 2), random.Random(3)
    for number in range(3):
        segment.append(hash_bytes(number), action(rng, wide=False), 7, (3, 0))
    kept: list[list[int]] = [[], [], []]
    for number in range(60):
        place = rng.randrange(3)
        segment.remember(place, hash_bytes(number))
        kept[place] = [*kept[place], number][-MAX_IDS:]
        assert bytes(segment.ids) == b"".join(hash_bytes(each) for ids in kept for each in ids)
        assert segment.id_counts.tolist() == [len(ids) for ids in kept]


def test_a_hash_is_found_only_where_one_begins() -> None:
    column = np.array([0x0807060504030201, 0x100F0E0D0C0B0A09], np.int64).tobytes()
    straddling = column[2:10]
    assert straddling in column
    assert not holds(column, straddling)
    assert holds(column, column[8:])
    assert holds(column[2:] + bytes(2) + straddling, straddling), "the first match straddles two entries"


def test_an_item_is_found_only_where_one_begins() -> None:
    segment = Segment(0, 0)
    rng = random.Random(1)
    first, second = 0x1111222233334444, 0x5555666677778888
    for number in (first, second):
        segment.append(hash_bytes(number), action(rng, wide=False), 1_000, ())
    straddling = (hash_bytes(first) + hash_bytes(second))[3:11]
    assert may_hold(pack_segment(segment), straddling), "a quick check may err on this side"
    assert segment.find(straddling, 1_000, 10, 0) == -1
    assert segment.find(hash_bytes(second), 1_000, 10, 0) == 1
    assert not may_hold(pack_segment(segment), hash_bytes(9))


@pytest.mark.parametrize("num_bytes", [0, 5, COLUMNS_START, 60])
def test_truncated_bytes_are_refused(num_bytes: int) -> None:
    segment = Segment(0, 2)
    rng = random.Random(2)
    for _ in range(4):
        segment.append(hash_bytes(3), action(rng, wide=True), 7, (0, 0))
    with pytest.raises((ValueError, struct.error)):
        unpack(0, pack_segment(segment)[:num_bytes], 2)
