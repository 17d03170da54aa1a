"""Records as hostile or careless producers write them, and how they are written."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from kafka import KafkaProducer

from tests.foreign import DEEP, HUGE
from wire.partitioner import partition_of

NOW_MS = 1_760_000_000_000
DAY_MS = 86_400_000
CODECS = (None, "gzip", "snappy", "lz4", "zstd")
TIMES_MS = (None, 0, 1, NOW_MS, 253_402_300_799_999, 2**62)
"""Which the producer gives a record; the topic has the broker's instead."""
BUSY = "the busiest"
"""Most of the traffic is this user's."""
USERS = (
    "u1", "U1", "u1 ", " u1", "\u00e9", "e\u0301", "\ufb01", "fi", "1", "01", "1.0", "true", "null", "None", "0", "-0",
    str(2**53), str(2**53 + 1), str(2**63 - 1), str(-(2**63)), "\U0001f600", "\u202e1u", "a\0b", "\ufeffu1",
    "u\u200b1", "<script>alert(1)</script>", "'; drop table users; --", "[bold red]u[/]", ":smile:",
    "\x1b[31mred\x1b[0m", "../../etc/passwd", "%00", "%s%n", "{{7*7}}", "a/b?c#d", "\n", "\t", "\\", '"', "\u2028",
    "x" * 256, "\U0001f600" * 256, "\x7f", "\x85",
)  # fmt: skip
"""They collide in case, normalisation or type, or are markup, paths and terminal codes."""
ITEMS: tuple[str | int, ...] = (*USERS, "\0", 1, 0, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63))
FIELDS = (
    b"user", b"item", b"timestamp", b"id", b"session", b"domain", b"value", b"propensity", b"action", b"features",
    b"user_features", b"more",
)  # fmt: skip
VALUES = (
    b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1" * 400, b"-" + HUGE, b"1e18", b"9007199254740993.0",
    b"5.0", b"0.5", b'"\\ud800"', b'"\xff"', b'"\xc0\x80"', b'"\\u0000"', b'""', b"[]", b"{}", b"null", b"true", DEEP,
    b'{"a":1,"a":2}', b'{"\\ud800":1}', b"[null]", b'"%b"' % (b"x" * 10_240), b"-0", b"-0.0", b"01", b"+1", b"0x1",
    b"1e-400", b"18446744073709551616", b"9223372036854775808", b'"\\uDC00\\uD800"',
)  # fmt: skip
NO_ACTIONS = (
    None, b"", b" ", b"\0", b"\0" * 1000, b"[]", b"[null]", b"[" * 100_000, DEEP, HUGE, b"\xff" * 100, b"NaN", b"-",
    b'"\xed\xa0\x80"', b'"\\ud800"', b"1e999999", b"//", b"null", b"true", b"{}", b"[{}]",
    b"[%b]" % b",".join([b"7"] * 999),
)  # fmt: skip
HEADERS: tuple[list[tuple[str, bytes]], ...] = (
    [], [("", b"")], [("", b"\0")], [("a", b"\xff")] * 50, [("reason", b"empty"), ("index", b"7"), ("topic", b"x")],
    [("content-encoding", b"gzip")], [("epoch", b"9"), ("chunk", b"-1"), ("shape", b"{}")],
)  # fmt: skip
Placed = tuple[int, bytes | None, bytes | None]
"""Partition, key, value."""


def acceptable(chance: random.Random, number: int) -> dict[str, Any]:
    """An action that is taken; times are out of order by days."""
    user = BUSY if chance.random() < 0.7 else chance.choice(USERS)
    action: dict[str, Any] = {
        "user": int(user) if user in ("1", str(2**53 + 1)) and chance.random() < 0.5 else user,
        "item": chance.choice(ITEMS),
        "action": chance.choice(("impression", ["click", "like"], "click", ["like", "like"])),
        "timestamp": NOW_MS + number * 100 + chance.choice((0, 0, 0, -DAY_MS * chance.randrange(1, 9), DAY_MS)),
    }
    more: dict[str, Any] = {
        "id": number // 3,
        "session": chance.choice(USERS),
        "domain": chance.choice(USERS),
        "value": chance.choice((-0.0, 3.4e38, 1e-45)),
        "features": {"genre": chance.choice(ITEMS), "unknown": None, "": "x"},
        "user_features": {"country": chance.choice(ITEMS)},
        "propensity": 5e-324,
        "more": {"a": [None] * 9, "b": {"c": "\ud7ff"}},
    }
    return {**action, **{name: each for name, each in more.items() if chance.random() < 0.3}}


def variants(action: dict[str, Any]) -> Iterator[bytes | None]:
    """Records made of an action, most of them bad."""
    whole = msgspec.json.encode(action)
    yield from NO_ACTIONS
    yield from (
        b"\xef\xbb\xbf" + whole,
        whole.decode().encode("utf-16"),
        whole + b"\0",
        whole * 2,
        whole[:-1],
        whole[1:],
    )
    yield from (b"[" + whole, b"[%b,]" % whole, b"[[%b]]" % whole, b"[" + b" " * 900_000 + whole + b"]")
    for field in FIELDS:
        rest = msgspec.json.encode({name: each for name, each in action.items() if name.encode() != field})[:-1]
        for value in VALUES:
            yield b'%b,"%b":%b}' % (rest, field, value)
        for again in (b'"twice"', msgspec.json.encode(action.get(field.decode()))):  # a key that is there twice
            yield b'%b,"%b":%b}' % (whole[:-1], field, again)
    for num_bytes in (990_000, 1_030_000):
        yield b'%b,"more":"%b"}' % (whole[:-1], b"y" * num_bytes)
    yield from map(msgspec.json.encode, _changed(action))
    elements = [whole, b"{}", b"7", b'{"user":"u1"}', b'{"forget": true, "user": "u1"}', whole]
    yield b"[%b]" % b",".join(elements)


def _changed(action: dict[str, Any]) -> Iterator[Any]:
    times = (
        0,
        1,
        NOW_MS // 1000,
        NOW_MS * 1000,
        NOW_MS * 10**6,
        253402300799999,
        253402300800000,
        -1,
        2**63 - 1,
        2**64 - 1,
    )
    yield from ({**action, "timestamp": each} for each in times)
    users = ("somebody else", "\0fence/1", "\0", "x" * 257, 0, -1, 5.0, False, ["u1"], {"id": 1})
    yield from ({**action, "user": each} for each in users)
    yield from ({**action, "action": each} for each in ([], "", ["click", "?"], {"type": "click"}))
    yield from ({"forget": True, **each} for each in ({}, {"user": None}, {"user": [1]}, {"user": 1, "item": 1}))
    for num in (1000, 1001):
        yield [{**action, "item": f"many {number}"} for number in range(num)]


class HostileProducers:
    """They write to one actions topic."""

    def __init__(self, bootstrap: str, topic: str, num_partitions: int, seed: int) -> None:
        self._bootstrap, self._topic, self._num_partitions = bootstrap, topic, num_partitions
        self._chance = random.Random(seed)

    def _home(self, user: str | int) -> int:
        return partition_of(str(user).encode(), self._num_partitions)

    def records(self, num_acceptable: int) -> list[Placed]:
        """Good ones and bad ones, mixed; some with no key, or another, or in a partition that is not theirs."""
        chance, found = self._chance, list[Placed]()
        for number in range(num_acceptable):
            action = acceptable(chance, number)
            key = chance.choice((None, b"", b"\xff", str(action["user"]).encode()))
            found.append((self._home(action["user"]), key, msgspec.json.encode(action)))
        home = self._home("u1")
        for value in variants({"user": "u1", "item": "i1", "action": "click", "timestamp": NOW_MS}):
            partition = chance.choice((home, home, home, *range(self._num_partitions)))
            found.append((partition, chance.choice((None, b"u1", b"\0" * 50, b"k" * 2000)), value))
        chance.shuffle(found)
        return found

    def write(self, records: list[Placed]) -> None:
        """With every codec, with odd headers and times of the records' own. Raises if the broker refuses any."""
        for index, codec in enumerate(CODECS):
            producer = KafkaProducer(
                bootstrap_servers=self._bootstrap, compression_type=codec, linger_ms=20, max_request_size=1 << 24
            )
            sent = [
                producer.send(
                    self._topic, value, key, partition=partition, headers=self._chance.choice(HEADERS),
                    timestamp_ms=self._chance.choice(TIMES_MS),
                )
                for partition, key, value in records[index :: len(CODECS)]
                if (key, value) != (None, None)
            ]  # fmt: skip
            for each in sent:
                each.get(60)
            producer.close()

    def write_in_transactions(self, records: list[Placed]) -> None:
        """Ten to a transaction; behind each, an aborted one."""
        asyncio.run(self._write_in_transactions(records))

    async def _write_in_transactions(self, records: list[Placed]) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap, transactional_id=self._topic, max_request_size=1 << 24
        )
        await producer.start()
        for first in range(0, len(records), 10):
            async with producer.transaction():
                for partition, key, value in records[first : first + 10]:
                    await producer.send(self._topic, value, key, partition)
            await producer.begin_transaction()
            for partition in range(self._num_partitions):
                await producer.send(self._topic, b"aborted", partition=partition)
            await producer.abort_transaction()
        await producer.stop()
