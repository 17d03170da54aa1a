"""What waits is answered: beside one that cannot be, and before the end; and what a server announces of itself."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from serving.announcer import Announcer
from serving.batcher import Answered, Batcher, _Waiting
from serving.engine import Ask, Engine
from serving.histories import Histories
from serving.service import no_past
from tests.serving.world import World, holder_of, versions
from wire.config import KafkaConfig

HOLDER = holder_of(next(versions(World(num_users=2), 1)))
FINE = Ask(None, no_past(), np.zeros(0, np.int64), 2**40, k=3)
BROKEN = Ask(None, no_past(), np.zeros(0, np.int64), 2**40, candidates=np.array(["no hash"]))  # type: ignore[arg-type]


def batcher() -> Batcher:
    return Batcher(Engine(Histories(10**6)), HOLDER, num_workers=1, max_batch=4, max_waiting=100)


def test_a_request_that_fails_takes_no_other_along() -> None:
    made = batcher()
    waiting = [_Waiting(ask, Future[Answered]()) for ask in (FINE, BROKEN, FINE)]
    made._answer(waiting)
    assert [each.future.exception() is None for each in waiting] == [True, False, True]
    assert len(waiting[0].future.result().found.items) == 3
    made.close()


def test_what_waits_is_answered_before_the_end() -> None:
    made = batcher()
    futures = [made.submit(FINE) for _ in range(20)]
    made.close()
    assert all(future.done() for future in futures)
    assert {len(future.result().names) for future in futures} == {3}


@pytest.mark.parametrize("held", [True, False])
def test_a_server_announces_the_version_that_it_answers_from(held: bool) -> None:
    holder = HOLDER if held else type(HOLDER)()
    status = Announcer(KafkaConfig(), "status", "here", holder, lambda: 7, 1.0).status()
    assert (status.component, status.num_requests) == ("here", 7)
    current = holder.current
    if current is None:
        assert (status.epoch, status.number, status.newest_record_ms) == (-1, -1, -1)
    else:
        assert (status.epoch, status.number) == current.which
        assert (status.newest_record_ms, status.swapped_ms) == (current.manifest.newest_record_ms, current.swapped_ms)
