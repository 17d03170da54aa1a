"""Marks: the requests that make them, their bytes, their keys."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from wire.action import Rejection, decode_record
from wire.action_json import ForgetRequest, Refused, forget_request_of
from wire.config import ActionConfig
from wire.errors import CodecError
from wire.example import PIECE, Address, Mark, fence
from wire.example_codec import decode_example, encode_example
from wire.example_log import ExampleLog, Verdict
from wire.hashing import item_hash
from wire.topics import ITEM_KEY, address_of_key, example_key, fence_key, keys_of_user

CONFIG = ActionConfig(kinds=("click",))
ADDRESSES = [
    Address("u1", 3, 0), Address("u1", PIECE, 7), Address("a\0b", 0, 0), Address("", -2, 0), Address("", -3, -5),
]  # fmt: skip


def mark_of(mark: Mark, user: str = "", item: Any = None) -> Any:
    names = {} if item is None else {item_hash(item): item}
    return replace(fence(0, 1, 5), is_fence=False, mark=mark, user=user, names=names)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"forget": True, "user": 5}, ForgetRequest("5")),
        ({"forget": True, "user": "u"}, ForgetRequest("u")),
        ({"forget": True, "item": 5}, ForgetRequest("", 5)),
        ({"forget": False, "item": "x"}, ForgetRequest("", "x", is_back=True)),
        (
            {"forget": True, "users": ["u", 5, "5"], "before_offset": 7},
            ForgetRequest("", users=("u", "5"), before_offset=7),
        ),
    ],
)
def test_a_record_can_be_a_request_to_forget(content: Any, expected: ForgetRequest) -> None:
    assert decode_record(msgspec.json.encode(content), 0, CONFIG) == [expected]


@pytest.mark.parametrize(
    "content",
    [
        {"forget": True}, {"forget": True, "user": "u", "item": 1}, {"forget": 1, "user": "u"},
        {"forget": False, "user": "u"}, {"forget": True, "user": ""}, {"forget": True, "item": "\0"},
        {"forget": True, "users": [], "before_offset": 1}, {"forget": True, "users": ["u"]},
        {"forget": True, "users": ["u"] * 1001, "before_offset": 1}, {"forget": True, "users": "u", "before_offset": 1},
        {"forget": True, "users": ["u"], "before_offset": -1}, {"forget": True, "users": [""], "before_offset": 1},
        {"forget": False, "users": ["u"], "before_offset": 1}, {"forget": True, "users": ["u"], "before_offset": True},
        {"forget": True, "users": ["u"], "user": "u", "before_offset": 1},
        {"forget": True, "users": [f"{number:0256}" for number in range(999)], "before_offset": 1},
        {"forget": True, "user": [1]}, [{"forget": True, "user": "u"}], {"forget": True, "item": 2**70},
    ],
)  # fmt: skip
def test_anything_else_with_the_word_is_a_dead_letter(content: Any) -> None:
    (one,) = decode_record(msgspec.json.encode(content) if content != {"forget": True, "item": 2**70} else
                           b'{"forget":true,"item":1180591620717411303424}', 0, CONFIG)  # fmt: skip
    assert isinstance(one, Rejection)


@pytest.mark.parametrize("what", ["user", "item"])
def test_a_name_that_no_encoding_has_is_refused(what: str) -> None:
    with pytest.raises(Refused, match=rf"{what}: expected text in UTF-8, got .* check the terminal's encoding"):
        forget_request_of({"forget": True, what: "caf\udce9"})  # as a terminal in Latin-1 passes it on


def test_an_action_with_such_a_field_stays_an_action() -> None:
    content = {"user": "u", "item": 1, "action": "click", "timestamp": 1_700_000_000_000, "forget": True}
    (one,) = decode_record(msgspec.json.encode(content), 1_700_000_000_000, CONFIG)
    assert type(one).__name__ == "Action"


@pytest.mark.parametrize("mark", [mark_of(Mark.USER, "u"), mark_of(Mark.ITEM, "", 7), mark_of(Mark.ITEM_BACK, "", "x")])
def test_its_bytes_say_what_it_is(mark: Any) -> None:
    found = decode_example(encode_example(mark))
    assert (found.mark, found.user, found.names, found.address) == (mark.mark, mark.user, mark.names, mark.address)
    assert ExampleLog(5).feed(found) is Verdict.ACCEPT
    both = bytearray(encode_example(mark))
    assert decode_example(bytes(both)).num_new == 0


def test_a_record_with_two_marks_or_with_interactions_is_refused() -> None:
    torn = replace(mark_of(Mark.USER, "u"), mark=Mark.USER | Mark.ITEM)
    with pytest.raises(CodecError, match="one mark and no interactions"):
        encode_example(torn)
    with pytest.raises(CodecError, match="names its item"):
        encode_example(replace(mark_of(Mark.ITEM, "", 7), names={}))


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_key_gives_its_address_back(address: Address) -> None:
    assert address_of_key(example_key(address, 14)) == address


def test_keys_that_stand_for_nothing_give_none() -> None:
    foreign = (b"", b"nobody", b"u\0x", b"\xff\0001", b"u\0-1", b"u\0-2", b"u\0.-5", b"u\0" + b"9" * 19)
    items = (ITEM_KEY, ITEM_KEY + b"x", ITEM_KEY + b"9" * 19, ITEM_KEY + b"9" * 5000)
    for key in (fence_key(3), *foreign, *items):
        assert address_of_key(key) is None


def test_the_keys_of_a_user_are_all_that_his_examples_can_have() -> None:
    keys = keys_of_user("u", 5, 4)
    assert len(set(keys)) == len(keys) == 5 + 8
    every = {example_key(Address("u", segment, 0), 5) for segment in range(40)}
    every |= {example_key(Address("u", PIECE, place), 5) for place in range(8)}
    assert every == set(keys)


@pytest.mark.parametrize("num", [0, 1, 3, 4, 7, 8, 9, 13, 40])
def test_the_keys_of_so_many_interactions_are_those_that_their_examples_can_have(num: int) -> None:
    pieces = {Address("u", PIECE, place % 8) for place in range(num)}
    whole = {Address("u", segment, 0) for segment in range(num // 4)}
    assert set(keys_of_user("u", 5, 4, num)) == {example_key(each, 5) for each in pieces | whole}


def test_a_request_concerns_those_who_have_not_acted_since() -> None:
    request = ForgetRequest("", users=("u",), before_offset=7)
    assert [request.concerns(offset) for offset in (-1, 6, 7)] == [True, True, False]
    assert ForgetRequest("u").concerns(10**9)


def test_a_mark_may_name_several_users() -> None:
    users = ["u", 'a "quoted" one', "\u5b57", "x\0y"]
    mark = replace(mark_of(Mark.USERS, json.dumps(users)), number=3)
    assert decode_example(encode_example(mark)).forgotten == users
    assert mark.address == mark_of(Mark.USER, "u").address
    assert mark_of(Mark.USER, "u").forgotten == ["u"]
    assert mark_of(Mark.USER, "").forgotten == mark_of(Mark.ITEM, "", 7).forgotten == []
    for wrong in ("", "u", '{"u": 1}', "[1]", '["u"'):
        with pytest.raises(CodecError, match="JSON of a known form"):
            encode_example(mark_of(Mark.USERS, wrong))


def test_a_tombstone_is_remembered_until_its_key_is_told_again() -> None:
    log = ExampleLog(None, allow_gaps=True)
    assert log.feed(mark_of(Mark.ITEM, "", 7)) is Verdict.ACCEPT
    log.bury(address_of_key(b"\0item/%d" % item_hash(7)))
    assert log.buried == {Address("", -3, item_hash(7))}
    assert log.feed(replace(mark_of(Mark.ITEM, "", 7), number=6)) is Verdict.ACCEPT
    assert not log.buried
    assert not log.take_run(np.array([3]), np.array([1]))
