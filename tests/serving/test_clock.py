"""What "now" is for a request that names no time."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import ServingConfig
from serving.request_builder import RequestBuilder
from serving.users.histories import Histories

HOUR_MS = 3_600_000
NOW_MS = 1_760_000_000_000


def now_ms(
    clock: str, wall_ms: int, newest_event_ms: int, newest_record_ms: int, monkeypatch: pytest.MonkeyPatch
) -> int:
    monkeypatch.setattr(time, "time", lambda: wall_ms / 1000)
    builder = RequestBuilder(ServingConfig(clock=clock), Histories(1 << 20))
    manifest: Any = SimpleNamespace(newest_event_ms=newest_event_ms, newest_record_ms=newest_record_ms)
    version: Any = SimpleNamespace(manifest=manifest)
    return builder.now_ms(version)


@pytest.mark.parametrize("behind_ms", [0, 1, HOUR_MS])
def test_a_server_whose_clock_is_behind_answers_as_of_what_it_has_learned(
    behind_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what was learned last would be in the future: too young for every filter by age."""
    told = NOW_MS - behind_ms, NOW_MS + 200_000, NOW_MS
    assert now_ms("auto", *told, monkeypatch) == NOW_MS
    assert now_ms("wall", *told, monkeypatch) == NOW_MS - behind_ms
    assert now_ms("event", *told, monkeypatch) == NOW_MS + 200_000


def test_old_events_that_are_sent_now_are_answered_as_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for behind_ms in (0, HOUR_MS):
        assert now_ms("auto", NOW_MS - behind_ms, 5 * HOUR_MS, NOW_MS, monkeypatch) == 5 * HOUR_MS


@pytest.mark.parametrize("ahead_ms", [HOUR_MS + 1, 365 * 24 * HOUR_MS])
def test_a_producer_whose_clock_is_far_ahead_moves_no_servers(ahead_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the topic keeps producers' times: every item would be too old for filters by age."""
    told = NOW_MS, NOW_MS + ahead_ms, NOW_MS + ahead_ms
    assert now_ms("auto", *told, monkeypatch) == NOW_MS
    assert now_ms("auto", NOW_MS, 5 * HOUR_MS, NOW_MS + ahead_ms, monkeypatch) == 5 * HOUR_MS
