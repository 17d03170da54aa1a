"""What `headrace versions` lists and `headrace rollback` chooses from are the versions that servers would take."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import headrace.rollout
import headrace.versions
from headrace.config import Settings
from headrace.rollout import pin, rollback, who
from headrace.versions import manifests
from tests.headrace.test_ledger import manifest
from wire.control import Pin
from wire.errors import VersionError
from wire.kafka.consumer import Span
from wire.weights import CLAIM_HEADERS, CLAIM_KEY, MANIFEST_HEADERS, Claim, chunk_headers, encode_manifest, version_key

READ = list["Record"]()
"""The records that were read from the topic."""


@dataclass(frozen=True)
class Record:
    """A Kafka record."""

    key: bytes | None
    headers: list[tuple[str, bytes]]
    value: bytes | None
    offset: int = -1


def claim(epoch: int) -> Record:
    return Record(CLAIM_KEY, CLAIM_HEADERS, msgspec.json.encode(Claim(epoch=epoch, claimant="t")))


def version(epoch: int, number: int, base: int, *, chunks: Iterable[int] = (0, 1)) -> list[Record]:
    key = version_key(epoch, number)
    kind = "base" if number == base else "delta"
    about = manifest(number, 0, [], epoch, kind=kind, base_number=base, num_chunks=2)
    return [
        *(Record(key, chunk_headers(index), b"x") for index in chunks),
        Record(key, MANIFEST_HEADERS, encode_manifest(about)),
    ]


RELEASE = msgspec.json.encode(Claim(epoch=2, claimant="t", released=True))
FOREIGN = [Record(None, [], b"foreign"), Record(b"1/9", MANIFEST_HEADERS, b"{"), Record(b"x", CLAIM_HEADERS, b"{")]
LOG = [
    *version(1, 0, 0), *version(1, 1, 0), *FOREIGN, claim(2), *version(2, 0, 0), *version(1, 2, 0),
    *version(2, 1, 0, chunks=(1,)), *version(2, 0, 0), *version(2, 2, 0),
]  # fmt: skip
"""A trainer of epoch 1 goes on after it was fenced; a version is torn; one is repeated."""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    records = list(LOG)

    def read(_consumer: Any, _topic: str, wanted: Mapping[int, Span]) -> Iterator[Record]:
        for offset in range(wanted[0].first, wanted[0].end):
            READ.append(records[offset])
            yield dataclasses.replace(records[offset], offset=offset)

    monkeypatch.setattr(headrace.versions, "connect", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(headrace.versions, "spans", lambda *_: {0: Span(0, len(records))})
    monkeypatch.setattr(headrace.versions, "read", read)
    monkeypatch.setattr(headrace.rollout, "followed_line", lambda _: "")
    return records


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def note(_settings: Settings, _key: bytes, decision: Any) -> None:
        assert isinstance(decision, Pin)
        found.append((decision.epoch, decision.number))

    monkeypatch.setattr(headrace.rollout, "send_decision", note)
    return found


@pytest.mark.usefixtures("log")
def test_only_versions_that_a_server_would_take_are_listed() -> None:
    assert [each.which for each in manifests(Settings())] == [(1, 0), (1, 1), (2, 0), (2, 2)]


@pytest.mark.usefixtures("log")
def test_a_rollback_goes_to_no_version_of_a_fenced_trainer(pinned: list[tuple[int, int]]) -> None:
    assert rollback(Settings(), None) == 0
    assert pinned == [(1, 1)]
    for which in ("1/2", "2/1"):
        with pytest.raises(VersionError, match=r"expected one that is in the topic with its base, got " + which):
            rollback(Settings(), which)


def test_a_rollback_goes_to_no_version_whose_base_is_gone(log: list[Record], pinned: list[tuple[int, int]]) -> None:
    """Retention has removed the first base, and not yet what builds on it."""
    del log[: len(version(1, 0, 0))]
    rollback(Settings(), None)
    assert pinned == [(2, 0)]
    with pytest.raises(VersionError, match=r"got 1/1"):
        rollback(Settings(), "1/1")


@pytest.mark.usefixtures("log")
def test_a_pin_names_a_version_that_is_there_or_may_come(
    pinned: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("1/1", "2/2", "2/3", "3/0"):
        assert pin(Settings(), version) == 0
    assert pinned == [(1, 1), (2, 2), (2, 3), (3, 0)]
    assert capsys.readouterr().out.count("which is still to come") == 2
    for version in ("1/2", "1/7", "2/1", "0/0"):
        with pytest.raises(VersionError, match=r"with its base, or one above 2/2, .* got " + version):
            pin(Settings(), version)
    assert len(pinned) == 4


def test_a_pin_names_no_version_whose_base_is_gone(log: list[Record], pinned: list[tuple[int, int]]) -> None:
    del log[: len(version(1, 0, 0))]
    with pytest.raises(VersionError, match=r"got 1/1"):
        pin(Settings(), "1/1")
    assert pinned == []


def test_a_user_without_a_name_may_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is a number."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert who().startswith("4000000000@")


@pytest.fixture
def week(log: list[Record], monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Many versions of five epochs, the first without its base. A trainer that was fenced goes on for a while."""
    monkeypatch.setattr(headrace.versions, "FIRST_WINDOW", 16)
    log[:] = [each for number in range(3, 9) for each in version(1, number, 0)]
    for epoch in range(2, 7):
        for number in range(300):
            log += [claim(epoch)] if not number else []
            log += version(epoch - 1, 400 + number, 0) if epoch > 2 and number < 3 else []
            log += version(epoch, number, number - number % 10)
    return log


def test_the_newest_versions_are_found_without_reading_all(week: list[Record]) -> None:
    everything = manifests(Settings())
    assert len(everything) == 6 + 5 * 300
    for num in (1, 2, 9, 77, 299, 300, 301, 302, 700):
        READ.clear()
        found = manifests(Settings(), lambda found, num=num: len(found) >= num)  # type: ignore[misc]
        assert found == everything[-len(found) :]
        assert num <= len(found)
        assert len(READ) < 20 * num + 100, "or a week of versions would be read for the last one"


def test_a_window_that_begins_behind_a_claim_has_no_version_of_a_fenced_trainer(
    week: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = manifests(Settings())
    for window in range(len(week) - week.index(claim(6)) - 20, len(week) - week.index(claim(6)) + 5):
        monkeypatch.setattr(headrace.versions, "FIRST_WINDOW", window)
        found = manifests(Settings(), bool)
        assert found == everything[-len(found) :]


def test_a_rollback_reads_no_more_than_it_needs(week: list[Record], pinned: list[tuple[int, int]]) -> None:
    for version in (None, "6/7", "4/123", "2/0", "6/299"):
        READ.clear()
        rollback(Settings(), version)
        assert len(READ) < len(week) / 5
    assert pinned == [(5, 299), (6, 7), (4, 123), (2, 0), (6, 299)]
    for version in ("1/5", "5/401", "3/300"):
        READ.clear()
        with pytest.raises(VersionError, match="with its base, got " + version):
            rollback(Settings(), version)
        assert len(READ) < len(week) / 5
    del week[week.index(claim(6)) :]
    del week[: week.index(claim(5))]
    rollback(Settings(), None)
    assert pinned[-1] == (5, 298), "there is one epoch alone"


def test_a_manifest_without_chunks_hides_no_version(
    log: list[Record], pinned: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader drops it, whatever version it names."""
    monkeypatch.setattr(headrace.versions, "FIRST_WINDOW", 4)
    records = [claim(4), *(each for number in range(20) for each in version(4, number, number - number % 10))]
    records += [claim(5), *(each for number in range(20) for each in version(5, number, number - number % 10))]
    for place in range(len(records)):
        log[:] = [*records[:place], *version(99, 0, 0, chunks=()), *records[place:]]
        for asked in (None, "4/19", "4/15", "5/15"):
            rollback(Settings(), asked)
        assert pinned[-4:] == [(4, 19), (4, 19), (4, 15), (5, 15)]


def test_a_version_of_which_a_window_has_the_end_alone_is_found(
    log: list[Record], pinned: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bisection looks at places between a version's chunks and its manifest."""
    monkeypatch.setattr(headrace.versions, "FIRST_WINDOW", 1)
    log[:] = [each for number in range(40) for each in version(1, number, 0)]
    for number in range(40):
        rollback(Settings(), f"1/{number}")
    assert pinned == [(1, number) for number in range(40)]


def test_the_chunks_of_a_new_epoch_fence_off_the_one_before(log: list[Record]) -> None:
    """Its first version is larger than the window, and its claim is before that."""
    chunks = [Record(version_key(2, 0), chunk_headers(index), b"x") for index in range(300)]
    log[:] = [claim(1), *version(1, 0, 0), claim(2), *chunks, *version(1, 1, 0), *chunks[:10]]
    assert manifests(Settings(), bool)[-1].which == (1, 0)


def test_the_claim_that_ends_an_epoch_does_not_begin_it(log: list[Record]) -> None:
    log[:] = [claim(1), *version(1, 0, 0), claim(2), *version(2, 0, 0)]
    log += [*FOREIGN * 90, *version(1, 1, 0), Record(CLAIM_KEY, CLAIM_HEADERS, RELEASE)]
    assert manifests(Settings(), bool)[-1].which == (2, 0)


def test_for_the_newest_version_little_is_read(log: list[Record]) -> None:
    """A record of 900 kB each, every two seconds, while `switch` waits."""
    log[:] = [each for number in range(300) for each in version(1, number, 0)]
    READ.clear()
    assert manifests(Settings(), bool)[-1].which == (1, 299)
    assert len(READ) <= 16


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("version", [f"{2**53 + 1}/1", "99999999999999999999/1", "1/" + "9" * 5000])
def test_no_pin_is_written_that_no_server_reads(version: str, pinned: list[tuple[int, int]]) -> None:
    with pytest.raises(VersionError, match="expected EPOCH/NUMBER"):
        pin(Settings(), version)
    assert pinned == []
