"""A reader takes each example once, drops ghosts, and says what is missing."""

from __future__ import annotations

from dataclasses import replace

from wire.example import NUM_OPEN, PIECE, Example, address_of, fence
from wire.example_log import ExampleLog, Gap, Verdict
from wire.topics import example_key


def numbered(number: int, epoch: int = 1, user: str = "u", segment: int = 0) -> Example:
    return replace(fence(0, epoch, number), is_fence=False, user=user, segment=segment, segment_len=4)


def test_numbers_in_order_are_accepted_and_repeats_dropped() -> None:
    log = ExampleLog()
    verdicts = [log.feed(numbered(number)) for number in (0, 1, 1, 0, 2)]
    accept, duplicate = Verdict.ACCEPT, Verdict.DUPLICATE
    assert verdicts == [accept, accept, duplicate, duplicate, accept]
    assert log.last_number == 2


def test_a_gap_is_reported_until_the_reader_decides_to_continue() -> None:
    log = ExampleLog(5)
    assert log.feed(numbered(7)) is Verdict.GAP
    assert log.gap == Gap(5, 7)
    assert log.feed(numbered(7)) is Verdict.GAP
    log.take(numbered(7))
    assert log.gap is None
    assert log.feed(numbered(8)) is Verdict.ACCEPT


def test_a_fence_makes_lower_epochs_stale() -> None:
    log = ExampleLog()
    assert log.feed(fence(0, 1)) is Verdict.FENCE
    assert log.feed(numbered(0, epoch=1)) is Verdict.ACCEPT
    assert log.feed(fence(0, 3)) is Verdict.FENCE
    assert log.feed(numbered(1, epoch=2)) is Verdict.STALE
    assert log.feed(numbered(1, epoch=1)) is Verdict.STALE
    assert log.feed(fence(0, 2)) is Verdict.STALE
    assert log.feed(numbered(1, epoch=3)) is Verdict.ACCEPT
    assert log.writer_epoch == 3


def test_an_example_of_a_higher_epoch_fences_as_well() -> None:
    log = ExampleLog(None)
    assert log.feed(numbered(4, epoch=2)) is Verdict.ACCEPT
    assert log.feed(numbered(5, epoch=1)) is Verdict.STALE


def test_a_reader_of_a_compacted_topic_skips_gaps() -> None:
    log = ExampleLog(None, allow_gaps=True)
    assert [log.feed(numbered(n)) for n in (3, 9, 4)] == [Verdict.ACCEPT, Verdict.ACCEPT, Verdict.DUPLICATE]


def test_keys_whose_last_record_does_not_count_are_named() -> None:
    log = ExampleLog()
    for example in (
        fence(0, 2), numbered(0, 2, "a"), numbered(1, 2, "b", 7), numbered(2, 1, "a"), numbered(1, 2, "b", 7),
    ):  # fmt: skip
        log.feed(example)
    assert log.overwritten == {("a", PIECE, 0), ("b", PIECE, 4)}
    log.feed(numbered(2, 2, "a", 1))
    assert log.overwritten == {("a", PIECE, 0), ("b", PIECE, 4)}
    log.feed(numbered(3, 2, "a", NUM_OPEN))
    assert log.overwritten == {("b", PIECE, 4)}, "a piece of a later segment took the place"


def test_a_whole_segment_and_its_pieces_have_different_keys() -> None:
    assert [address_of("u", 5, first, num, 4) for first, num in ((0, 4), (0, 3), (3, 1))] == [
        ("u", 5, 0), ("u", PIECE, 5 % NUM_OPEN * 4), ("u", PIECE, 5 % NUM_OPEN * 4 + 3),
    ]  # fmt: skip
    keys = {
        example_key(address_of("u", segment, first, num, 4), 3)
        for segment in range(12) for first in range(4) for num in range(1, 5 - first)
    }  # fmt: skip
    assert keys == {b"u\x00%d" % slot for slot in range(3)} | {b"u\x00.%d" % place for place in range(4 * NUM_OPEN)}
