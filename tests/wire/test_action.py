"""What becomes of a record: the schema decides, and refusals have the right reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from wire.action import Action, Rejection, decode_record
from wire.config import ActionConfig
from wire.hashing import item_hash

CONFIG = ActionConfig(kinds=("see", "click"), features=("genre", "maker"), user_features=("land",), min_timestamp_ms=0)
GOOD = {"user": "u", "item": 5, "action": "see", "timestamp": 1_000}
NOW = 2_000
FAR = 253_402_300_799_999
"""A record time that no timestamp is ahead of."""


def is_integer(checker: Any, entry: Any) -> bool:
    """As the schema's description says: a float from 2**53 on stands for several integers, so it is none of them."""
    exact = not isinstance(entry, float) or abs(entry) < 2**53
    return exact and Draft202012Validator.TYPE_CHECKER.is_type(entry, "integer")


STRICT = extend(
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer)
)  # fmt: skip
SCHEMA = STRICT(json.loads((Path(__file__).parents[2] / "schema/action.schema.json").read_text()))

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(["a" * 256, "a" * 257, "\0x"])
NUMBERS = st.one_of(
    st.integers(-5, 5), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 253402300799999, 253402300800000, 5.0, 3.5e38]),
)  # fmt: skip
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
KINDS = st.sampled_from(["see", "click"])
FEATURES = st.dictionaries(st.sampled_from(["genre", "maker", "x"]), TEXT | st.integers() | st.none(), max_size=3)
ACTIONS = st.fixed_dictionaries(
    {
        "user": TEXT | NUMBERS, "item": TEXT | NUMBERS, "action": KINDS | st.lists(KINDS, max_size=3),
        "timestamp": NUMBERS,
    },
    optional={
        "id": TEXT | NUMBERS, "session": TEXT | st.none(), "domain": TEXT, "value": NUMBERS | st.none(),
        "propensity": NUMBERS | st.floats(0, 1) | st.none(),
        "features": FEATURES, "user_features": FEATURES | st.none(), "more": JUNK,
    },
)  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn) -> Any:
    """An action with one field removed or replaced."""
    action = draw(ACTIONS)
    field = draw(st.sampled_from(sorted(action)))
    if draw(st.booleans()):
        del action[field]
    else:
        action[field] = draw(JUNK)
    return action


RECORDS = ACTIONS | spoiled() | st.lists(ACTIONS | spoiled(), max_size=3) | JUNK


def kinds_of(content: Any) -> bool:
    """The schema cannot know the configured kinds."""
    for action in content if isinstance(content, list) else [content]:
        names = action.get("action", []) if isinstance(action, dict) else []
        for name in [names] if isinstance(names, str) else names if isinstance(names, list) else []:
            if isinstance(name, str) and name not in CONFIG.kinds:
                return False
    return True


@settings(max_examples=600, deadline=None)
@given(RECORDS)
@example({"user": 5.0, "item": "5", "action": ["see"], "timestamp": 1e3})
@example([GOOD, {**GOOD, "value": 1e39}])
@example({**GOOD, "more": 3})
@example({**GOOD, "features": {"x": 1.5}})
@example([{"user": "u"}])
@example({**GOOD, "item": 2.0**53})
@example({**GOOD, "item": 2**53 + 1})
@example({**GOOD, "item": 2.0**53})
@example({**GOOD, "features": {"genre": 2.0**53 + 2}})
def test_a_record_is_accepted_if_the_schema_says_so(content: Any) -> None:
    if not kinds_of(content):
        return
    decoded = decode_record(json.dumps(content).encode(), FAR, CONFIG)
    assert SCHEMA.is_valid(content) == (not any(isinstance(one, Rejection) for one in decoded)), decoded


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS | spoiled(), min_size=1, max_size=5))
def test_each_element_of_a_list_is_treated_as_it_would_be_alone(contents: list[Any]) -> None:
    together = decode_record(json.dumps(contents).encode(), NOW, CONFIG)
    assert len(together) == len(contents)
    for index, (content, one) in enumerate(zip(contents, together, strict=True)):
        raw = json.dumps(content).encode()
        alone = decode_record(raw, NOW, CONFIG)[0]
        if isinstance(one, Rejection):
            assert isinstance(alone, Rejection)
            assert (one.reason, one.message) == (alone.reason, alone.message)
            assert (one.index, one.raw) == (index, raw)
        else:
            assert msgspec.json.encode(one) == msgspec.json.encode(alone)  # NaN is equal to itself there


@given(st.binary(max_size=60))
def test_no_bytes_make_it_raise(value: bytes) -> None:
    assert len(decode_record(value, NOW, CONFIG)) >= 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "empty"), (b"", "empty"), (b"[]", "empty"), (b"{", "malformed"), (b"\xff", "malformed"),
        (b" ", "malformed"),
        (b"[" * 100_000, "malformed"), (b'{"user":"\\ud800"}', "malformed"), (b"[1,", "malformed"),
        (b"{} {}", "malformed"),
        (b"x" * 1_000_001, "oversized"), (b"[%b]" % b",".join([b"1"] * 1_001), "oversized"),
        (b"5", "wrong_type"), (b"null", "wrong_type"), (b"{}", "missing_field"), (b'{"tick":5}', "missing_field"),
        (b'{"user":1e999}', "bad_value"),
        ({**GOOD, "timestamp": "1000"}, "wrong_type"), ({**GOOD, "timestamp": 1.5}, "wrong_type"),
        ({**GOOD, "timestamp": True}, "wrong_type"), ({**GOOD, "timestamp": -1}, "bad_time"),
        ({**GOOD, "timestamp": NOW + 300_001}, "future"), ({**GOOD, "user": ""}, "bad_value"),
        ({**GOOD, "user": "\0fence"}, "bad_value"), ({**GOOD, "user": None}, "wrong_type"),
        ({**GOOD, "item": "i" * 257}, "bad_value"), ({**GOOD, "item": 2**63}, "bad_value"),
        ({**GOOD, "action": "yawn"}, "unknown_action"), ({**GOOD, "action": ["see", "yawn"]}, "unknown_action"),
        ({**GOOD, "action": []}, "bad_value"), ({**GOOD, "action": 3}, "wrong_type"),
        ({**GOOD, "propensity": 0}, "bad_value"), ({**GOOD, "propensity": 1.5}, "bad_value"),
        ({**GOOD, "propensity": "x"}, "wrong_type"), ({**GOOD, "value": "x"}, "wrong_type"),
        ({**GOOD, "value": 1e39}, "bad_value"),
        ({**GOOD, "features": []}, "wrong_type"), ({**GOOD, "features": {"genre": {}}}, "wrong_type"),
        ({**GOOD, "id": ""}, "bad_value"),
        ({name: GOOD[name] for name in ("user", "item", "timestamp")}, "missing_field"),
    ],
)  # fmt: skip
def test_each_fault_gets_its_reason(content: Any, reason: str) -> None:
    value = json.dumps(content).encode() if isinstance(content, dict) else content
    (rejection,) = decode_record(value, NOW, CONFIG)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason, rejection.message
    assert rejection.index == -1
    assert rejection.raw == (value or b"")
    assert "expected" in rejection.message
    assert "got" in rejection.message


def test_an_action_is_hashed_and_its_features_ordered() -> None:
    content = {
        **GOOD, "user": 7, "action": ["click", "see", "click"], "id": "e", "domain": "d", "value": 3, "session": 4,
        "features": {"maker": 9, "genre": None, "other": "x"}, "user_features": {"land": "li"},
    }  # fmt: skip
    (action,) = decode_record(json.dumps(content).encode(), NOW, CONFIG)
    assert action == Action(
        "7", 5, item_hash(5), 0b11, 1_000, item_hash("e"), item_hash(4), item_hash("d"), 3.0, (0, item_hash(9)),
        (item_hash("li"),),
    )  # fmt: skip


def test_what_is_not_given_is_zero_or_nan() -> None:
    (action,) = decode_record(json.dumps({**GOOD, "id": None, "features": None}).encode(), NOW, CONFIG)
    assert isinstance(action, Action)
    assert (action.id_hash, action.domain_hash, action.feature_hash, action.user_feature_hash) == (0, 0, (0, 0), (0,))
    assert action.session_hash == 0
    assert math.isnan(action.value)


def test_future_is_judged_by_the_records_own_time() -> None:
    value = json.dumps({**GOOD, "timestamp": 10_000_000}).encode()
    assert isinstance(decode_record(value, 10_000_000 - 300_000, CONFIG)[0], Action)
    assert isinstance(decode_record(value, 10_000_000 - 300_001, CONFIG)[0], Rejection)


LIVE = ActionConfig(kinds=("see",))
NOW_MS = 1_760_000_000_000


@pytest.mark.parametrize(
    ("timestamp", "reason", "parts"),
    [
        (1_760_000_000, "bad_time", ["1990-01-01", "(1970-01-21 08:53:20)", "looks like seconds; multiply by 1000"]),
        (1_760_000_000_000_000, "bad_time", ["looks like microseconds; divide by 1000"]),
        (1_760_000_000_000_000_000, "bad_time", ["looks like nanoseconds; divide by 1000000"]),
        (0, "bad_time", ["got 0 (1970-01-01 00:00:00)", "check the producer's clock"]),
        (-5, "bad_time", ["got -5"]),
        (2**70, "bad_time", ["got 1180591620717411303424"]),
        ("1760000000000", "wrong_type", ["the text '1760000000000'", "looks like milliseconds", "without quotes"]),
        ("1760000000", "wrong_type", ["looks like seconds"]),
        ("2025-10-09T08:53:20Z", "wrong_type", ["looks like ISO 8601; send the number of milliseconds"]),
        ("soon", "wrong_type", ["the text 'soon'; send the number"]),
        (1_760_000_000.25, "wrong_type", ["fraction 1760000000.25, which looks like seconds; send whole milli"]),
        (1_760_000_000_000.5, "wrong_type", ["the fraction 1760000000000.5; send whole milliseconds"]),
        (None, "wrong_type", ["got null"]),
        (NOW_MS + 300_001, "future", ["action.max_future_s", "got 300.001 s"]),
    ],
)
def test_an_impossible_time_is_refused_with_the_unit_that_it_looks_like(
    timestamp: Any, reason: str, parts: list[str]
) -> None:
    content = {**GOOD, "timestamp": timestamp}
    (rejection,) = decode_record(json.dumps(content).encode(), NOW_MS, LIVE)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason
    for part in parts:
        assert part in rejection.message


def test_old_data_sets_pass_and_the_earliest_time_can_be_set() -> None:
    movielens = json.dumps({**GOOD, "timestamp": 789_652_009_000}).encode()  # 1995-01-09: the oldest MovieLens rating
    assert isinstance(decode_record(movielens, NOW_MS, LIVE)[0], Action)
    later = ActionConfig(kinds=("see",), min_timestamp_ms=1_600_000_000_000)
    assert isinstance(decode_record(movielens, NOW_MS, later)[0], Rejection)


@pytest.mark.parametrize(
    ("record_ms", "unit"),
    [(NOW_MS // 1000, "seconds"), (NOW_MS * 1000, "microseconds"), (NOW_MS * 10**6, "nanoseconds")],
)
def test_a_record_whose_own_time_is_in_another_unit_is_named_as_the_cause(record_ms: int, unit: str) -> None:
    content = json.dumps({**GOOD, "timestamp": NOW_MS}).encode()
    (rejection,) = decode_record(content, record_ms, LIVE)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "future"
    assert "own Kafka timestamp" in rejection.message
    assert f"looks like {unit}" in rejection.message
