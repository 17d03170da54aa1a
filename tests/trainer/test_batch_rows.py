"""The rows of a batch's items, listed at once or on a thread of their own."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from kernels.beside import Beside
from kernels.windows import list_rows
from model.kinds import negative_bits, positive_bits
from tests.trainer.samples import MODEL, taught
from trainer.examples.batch import build_batch
from trainer.learner.batch_rows import BatchRows


@pytest.mark.parametrize("beside", [False, True])
def test_rows_are_those_before_the_batch_and_those_with_its_own_items(
    beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.learner.batch_rows.LEAST_BESIDE", 1)
    learner, world = taught(num_steps=2)
    items, thread = learner.items, Beside() if beside else None
    for _ in range(5):
        batch = build_batch(world.examples(8), learner.histories, MODEL)
        before_n = items.lookup(batch.item_n)
        rows = BatchRows(items, batch, MODEL, thread)
        rows.begin(learner.forward_pass.target_rows(batch))
        rows_n, lists = rows.listed()
        np.testing.assert_array_equal(rows.seen_R, before_n[batch.target_R])
        np.testing.assert_array_equal(rows.seen_n(), before_n)
        np.testing.assert_array_equal(rows_n, items.lookup(batch.item_n))
        assert (rows_n > 0).all()
        kinds, first_R = (positive_bits(MODEL), negative_bits(MODEL)), batch.starts_B1[batch.owner_R]
        expected = list_rows(rows_n, batch.bits_n, batch.time_ms_n, kinds, first_R, batch.target_R)
        for each in fields(lists):
            np.testing.assert_array_equal(getattr(lists, each.name), getattr(expected, each.name), each.name)
        assert (before_n == 0).any()
