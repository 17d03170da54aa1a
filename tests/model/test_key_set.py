"""A set of keys is a set, also when it is asked about many at a time, however large it has grown."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.embedding import EmbeddingTable
from model.key_set import KeySet
from serving.users.histories import Histories
from wire.example import Mark, fence

KEYS = st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1)
NUM_REMOVED = 60_000


@given(st.lists(st.tuples(st.booleans(), KEYS)), st.lists(KEYS))
def test_it_is_a_set(changes: list[tuple[bool, int]], asked: list[int]) -> None:
    ours, theirs = KeySet(), set[int]()
    for is_added, key in changes:
        (ours.add if is_added else ours.discard)(key)
        (theirs.add if is_added else theirs.discard)(key)
        assert ours.holds(np.array([key])).tolist() == [key in theirs]
    assert ours == theirs
    assert ours.array.tolist() == sorted(theirs)
    assert ours.holds(np.array(asked, np.int64)).tolist() == [key in theirs for key in asked]


def test_a_server_reads_and_answers_quickly_however_many_items_were_removed() -> None:
    histories, began_s = Histories(1_000_000), time.process_time()
    for key in range(NUM_REMOVED):
        histories._apply_mark(replace(fence(0, 1), mark=Mark.ITEM, names={key: key}))
    assert time.process_time() - began_s < 3, "before, each request to forget copied all that came before it"
    began_s = time.process_time()
    for _ in range(1000):
        assert histories.is_removed(np.array([5, NUM_REMOVED + 5])).tolist() == [True, False]
    assert time.process_time() - began_s < 1


def test_a_trainer_looks_up_quickly_however_many_items_were_removed() -> None:
    table = EmbeddingTable(2, init_std=0.1, seed=1, salt=1)
    table.block(np.arange(1, NUM_REMOVED))
    began_s = time.process_time()
    for number in range(1000):
        assert table.insert(np.array([5, NUM_REMOVED + number]), 0, 0).tolist() == [0, number + 1]
    assert time.process_time() - began_s < 1
