"""What `headrace versions` lists and `headrace rollback` chooses from are the versions that servers would take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import headrace.rollout
import headrace.versions
from headrace.config import Settings
from headrace.rollout import pin, rollback
from headrace.versions import manifests
from tests.headrace.test_ledger import manifest
from wire.control import Pin
from wire.errors import VersionError
from wire.weights import CLAIM_HEADERS, CLAIM_KEY, MANIFEST_HEADERS, Claim, chunk_headers, encode_manifest, version_key


@dataclass(frozen=True)
class Record:
    """A Kafka record."""

    key: bytes | None
    headers: list[tuple[str, bytes]]
    value: bytes | None


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


FOREIGN = [Record(None, [], b"foreign"), Record(b"1/9", MANIFEST_HEADERS, b"{"), Record(b"x", CLAIM_HEADERS, b"{")]
LOG = [
    *version(1, 0, 0), *version(1, 1, 0), *FOREIGN, claim(2), *version(2, 0, 0), *version(1, 2, 0),
    *version(2, 1, 0, chunks=(1,)), *version(2, 0, 0), *version(2, 2, 0),
]  # fmt: skip
"""A trainer of epoch 1 goes on after it was fenced; a version is torn; one is repeated."""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    records = list(LOG)

    def read(*_: Any) -> Iterator[Record]:
        return iter(records)

    monkeypatch.setattr(headrace.versions, "connect", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(headrace.versions, "spans", lambda *_: {})
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
        with pytest.raises(VersionError, match=r"expected a version that is in the topic \(1/0 to 2/2\)"):
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
        with pytest.raises(VersionError, match=r"with its base \(1/0 to 2/2\), or one above 2/2, .* got " + version):
            pin(Settings(), version)
    assert len(pinned) == 4


def test_a_pin_names_no_version_whose_base_is_gone(log: list[Record], pinned: list[tuple[int, int]]) -> None:
    del log[: len(version(1, 0, 0))]
    with pytest.raises(VersionError, match=r"got 1/1"):
        pin(Settings(), "1/1")
    assert pinned == []


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("version", [f"{2**53 + 1}/1", "99999999999999999999/1", "1/" + "9" * 5000])
def test_no_pin_is_written_that_no_server_reads(version: str, pinned: list[tuple[int, int]]) -> None:
    with pytest.raises(VersionError, match="expected EPOCH/NUMBER"):
        pin(Settings(), version)
    assert pinned == []
