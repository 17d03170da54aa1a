"""Requests that wait for the broker are bounded in number and in time."""

from __future__ import annotations

import asyncio
import threading

import pytest

import serving.sender
from serving.errors import OverloadedError
from serving.sender import Sendings


def test_more_than_may_wait_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.sender, "MAX_SENDINGS", 3)
    is_back = threading.Event()

    async def ask() -> list[bool | BaseException]:
        sendings = Sendings()
        waiting = [asyncio.create_task(sendings.run(is_back.wait, 20)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="nothing was sent: 3 requests wait for the broker"):
            await sendings.run(is_back.wait)
        is_back.set()
        return [*await asyncio.gather(*waiting), await sendings.run(is_back.wait)]

    assert asyncio.run(ask()) == [True] * 4


def test_what_has_waited_too_long_for_others_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.sender, "TIMEOUT_S", -1.0)
    sent: list[int] = []
    with pytest.raises(OverloadedError, match="nothing was sent"):
        asyncio.run(Sendings().run(sent.append, 1))
    assert sent == []
