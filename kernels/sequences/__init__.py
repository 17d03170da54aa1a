"""A partition's sequencer in C++: records of the actions topic in, everything to be written in one batch out.

The definition is `wire.action` and `state.sequencer`; `decode` leaves to it whatever is unusual in a record.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kernels.compiled import baseline

EXAMPLE, USER, SEGMENT, NAME = range(4)
"""The kinds of entries of `Changes`."""
NOT_DECODED = -1


@dataclass(frozen=True, slots=True)
class Rules:
    """The sequencer's settings. ``num_partitions``: 0 accepts every user."""

    partition: int
    num_partitions: int
    segment_len: int
    num_slots: int
    window_ms: int
    deduplicate: bool
    min_timestamp_ms: int
    max_timestamp_ms: int
    max_future_ms: int
    max_record_bytes: int
    max_actions: int
    kinds: tuple[str, ...]
    features: tuple[str, ...]
    user_features: tuple[str, ...]
    user_tokens: bool
    propensity: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """Entries for one write batch, each (kind, key, value, example's number, newest Kafka timestamp), and the position
    after it; the last two of an entry are -1 unless it is an `EXAMPLE`."""

    entries: list[tuple[int, bytes, bytes, int, int]]
    position: list[int]


class Sequences:
    """The users of one partition. For one thread at a time; raises `KernelUnavailable` without compiled kernels.

    Before `apply`, what is `missing` has to be given with `load` and `know`, then what is `incomplete` with `complete`;
    after it, once its changes are on disk, `settle` frees what memory need not hold.
    """

    def __init__(self, rules: Rules) -> None:
        names = [name.encode() for name in (*rules.kinds, *rules.features, *rules.user_features)]
        numbers = array("q", (
            rules.partition, rules.num_partitions, rules.segment_len, rules.num_slots, rules.window_ms,
            rules.deduplicate, rules.min_timestamp_ms, rules.max_timestamp_ms, rules.max_future_ms,
            rules.max_record_bytes, rules.max_actions, len(rules.kinds), len(rules.features), len(rules.user_features),
            rules.user_tokens, rules.propensity,
        ))  # fmt: skip
        make = baseline("headrace_sequences_new")
        make.restype = ctypes.c_void_p
        sizes = array("q", map(len, names))
        made = make(_address(numbers), b"".join(names), _address(sizes))
        if made is None:
            raise MemoryError
        self._at = ctypes.c_void_p(made)
        self._data = b""
        weakref.finalize(self, baseline("headrace_sequences_free"), self._at)

    def decode(self, values: Sequence[bytes], record_times_ms: Sequence[int]) -> list[tuple[int, int]]:
        """The range of each record's actions, in place of those decoded before; (`NOT_DECODED`, …) for a record that
        the definition has to decode."""
        ends = list(itertools.accumulate(map(len, values)))
        records = array("q", itertools.chain.from_iterable(zip([0, *ends], ends, record_times_ms, strict=False)))
        found = array("q", bytes(16 * len(values)))
        self._data = b"".join(values)  # C++ refers to it
        _call("decode", self._at, self._data, _address(records), ctypes.c_int64(len(values)), _address(found))
        return list(zip(found[::2], found[1::2], strict=True))

    def add(self, user: str, item: str | int, numbers: Sequence[int], value: float) -> int:
        """Add an action that was decoded elsewhere, after the last; returns its index. ``numbers``: hash of the item,
        kinds, timestamp, hashes of id, session and domain, place in the record, hashes of features."""
        name, key = user.encode(), str(item).encode()
        given = array("q", (len(name), len(key), isinstance(item, int), *numbers))
        return _call("add", self._at, name + key, _address(given), ctypes.c_double(value))

    def missing(self) -> tuple[list[str], list[int]]:
        """The users of the decoded actions that are not in memory, and the items that no example is known to have
        named."""
        nums, found = array("q", (0, 0)), (ctypes.c_void_p * 3)()
        _call("missing", self._at, _address(nums), found)
        ends = _numbers(found[1], nums[0])
        names = _bytes(found[0], ends[-1] if ends else 0)
        users = [names[start:end].decode() for start, end in itertools.pairwise([0, *ends])]
        return users, _numbers(found[2], nums[1])

    def load(self, user: str, stored: bytes) -> bool:
        """Add a user in stored form, without the segments before the last one; False for damaged bytes."""
        name = user.encode()
        sizes = array("q", (len(name), len(stored)))
        return _try("load", self._at, name + stored, _address(sizes)) == 0

    def incomplete(self) -> list[tuple[str, range]]:
        """Loaded users, and the segments before the last one that the actions need of each."""
        found = (ctypes.c_void_p * 2)()
        num = _call("incomplete", self._at, found)
        places = _numbers(found[1], 3 * num)
        ends = places[::3]
        names = _bytes(found[0], ends[-1] if ends else 0)
        return [
            (names[start:end].decode(), range(first, last))
            for start, end, first, last in zip([0, *ends], ends, places[1::3], places[2::3], strict=False)
        ]

    def complete(self, user: str, older: Sequence[bytes]) -> bool:
        """Add a user's older segments in stored form; False for damaged bytes."""
        parts = (user.encode(), *older)
        sizes = array("q", map(len, parts))
        return _try("complete", self._at, b"".join(parts), _address(sizes), ctypes.c_int64(len(older))) == 0

    def know(self, items: Sequence[int]) -> None:
        """Note that these items have been named."""
        given = array("q", items)
        _call("know", self._at, _address(given), ctypes.c_int64(len(given)))

    def drop(self, user: str) -> None:
        """Forget a user."""
        name = user.encode()
        _call("drop", self._at, name, ctypes.c_int64(len(name)))

    def apply(self, records: Sequence[tuple[int, int, int, int]], position: Sequence[int]) -> Changes:
        """Apply records, each (first action, last, offset, Kafka timestamp), and end the batch. ``position``: applied
        offset and its time, newest event time, counted offset, the four counts, next number, writer epoch, and the
        offset at which the batch begins."""
        given, held = array("q", itertools.chain.from_iterable(records)), array("q", position)
        num_bytes, found = ctypes.c_int64(), (ctypes.c_void_p * 2)()
        num = _call(
            "apply", self._at, _address(given), ctypes.c_int64(len(records)), _address(held), ctypes.byref(num_bytes),
            found,
        )  # fmt: skip
        data, places = _bytes(found[0], num_bytes.value), iter(_numbers(found[1], 6 * num))
        entries = [
            (kind, data[key_at:value_at], data[value_at:end], number, record_ms)
            for kind, key_at, value_at, end, number, record_ms in zip(*[places] * 6, strict=True)
        ]
        return Changes(entries, held.tolist())

    def settle(self, max_users: int, max_names: int) -> None:
        """Call once what `apply` returned is on disk: keeps at most this many users and item names in memory."""
        _call("settle", self._at, ctypes.c_int64(max_users), ctypes.c_int64(max_names))


def _try(name: str, *arguments: Any) -> int:
    function = baseline(f"headrace_sequences_{name}")
    function.restype = ctypes.c_int64
    return int(function(*arguments))


def _call(name: str, *arguments: Any) -> int:
    answer = _try(name, *arguments)
    if answer < 0:
        raise RuntimeError(f"sequencer: {name} failed: expected memory, and users with all of their segments")
    return answer


def _address(column: array[int]) -> ctypes.c_void_p:
    """Valid as long as the column is: the caller keeps it in a variable."""
    return ctypes.c_void_p(column.buffer_info()[0])


def _bytes(at: int | None, num: int) -> bytes:
    return ctypes.string_at(at, num) if at and num else b""


def _numbers(at: int | None, num: int) -> list[int]:
    return array("q", _bytes(at, 8 * num)).tolist()
