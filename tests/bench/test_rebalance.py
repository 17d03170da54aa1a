"""What `bench.rebalance` says of the actions of a backlog."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec

from bench.rebalance import waits_of
from state.sequencer import Sequencer
from wire.action import Action, decode_record
from wire.config import ActionConfig, SequenceConfig
from wire.example_codec import encode_example


def test_each_action_of_a_backlog_has_waited_since_it_came() -> None:
    config, sequencer, records = ActionConfig(), Sequencer(ActionConfig(), SequenceConfig(), 0), []
    for offset, users in enumerate((["a", "b"], ["a"], ["b", "a", "a"], ["c"])):
        told = [{"user": user, "item": 7, "action": "click", "timestamp": 10**12 + offset} for user in users]
        records.append(
            SimpleNamespace(partition=0, offset=offset, timestamp=1000 * offset, value=msgspec.json.encode(told))
        )
        for each in decode_record(records[-1].value, 10**12, config):
            assert isinstance(each, Action)
            sequencer.apply(each, offset, 10**12 + offset)
    backlog = [
        SimpleNamespace(partition=0, offset=number, timestamp=5000, value=encode_example(each))
        for number, each in enumerate(sequencer.drain())
    ]
    assert len(backlog) < 7, "or this would prove nothing"
    repeated = [SimpleNamespace(**{**vars(backlog[-1]), "timestamp": 9000})]
    found = waits_of(records, [*backlog, *repeated], 9_999)
    assert sorted(found[:, 1].tolist(), reverse=True) == [5000, 5000, 4000, 3000, 3000, 3000, 2000]
    assert set(found[:, 0].tolist()) == {5000}


def test_an_action_that_still_waits_counts_with_the_time_so_far() -> None:
    told = msgspec.json.encode({"user": "a", "item": 7, "action": "click", "timestamp": 10**12})
    records = [SimpleNamespace(partition=part, offset=0, timestamp=1000 * part, value=told) for part in range(3)]
    assert waits_of(records, [], 12_000)[:, 1].tolist() == [12_000, 11_000, 10_000]
