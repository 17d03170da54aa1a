"""A dead letter says where its bytes came from and why they were refused, whoever wrote it."""

from __future__ import annotations

import pytest

from wire.dead_letter import DeadLetter, read_headers


def test_a_dead_letter_survives_the_round_trip() -> None:
    letter = DeadLetter("bad_time", "timestamp: expected …", "headrace.actions.v1", 3, 17, -1)
    assert read_headers(letter.headers()) == letter
    assert letter.key == b"headrace.actions.v1/3/17"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("reason", None), ("partition", b"\xff"), ("offset", b"9" * 40), ("index", "²".encode())],
        [("topic", b""), ("other", b"x")],
    ],
)
def test_what_a_foreign_record_does_not_say_is_the_default(headers: list[tuple[str, bytes | None]]) -> None:
    assert read_headers(headers) == DeadLetter()
