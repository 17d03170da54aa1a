"""One pass over the synthetic stream: records as described, each learned once, and a run in pieces is the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.published_stream import PUBLISHED, OnePass, command, counts, hit_chances
from bench.streams.synthetic import BLOCK, LENGTH, NUM_ITEMS, Records


def test_records_repeat_themselves_and_their_items_are_released_over_time() -> None:
    records = Records(10_000, seed=3)
    first, last = records.block(0), records.block(records.num_blocks - 1)
    assert first.shape == (BLOCK, LENGTH)
    assert last.shape == (10_000 % BLOCK, LENGTH)
    repeats = np.mean([1 - len(set(record)) / LENGTH for record in first.tolist()])
    assert 0.28 < repeats < 0.5  # .28 by the process; new ones of a single category are often the same as well
    early, late = (set(items.ravel().tolist()) for items in (first, last))
    assert len(early) <= 0.45 * NUM_ITEMS
    assert len(late - early) > 0.4 * len(late)
    np.testing.assert_array_equal(Records(10_000, seed=3).block(5), records.block(5))
    assert not np.array_equal(Records(10_000, seed=4).block(0), first)


def test_a_hit_among_equals_is_the_chance_of_a_random_order() -> None:
    score_BV = np.array([[3.0, 2.0, 2.0, 1.0], [3.0, 2.0, 2.0, 1.0], [0.0, 5.0, 1.0, 1.0]])
    np.testing.assert_allclose(hit_chances(score_BV, np.array([1, 3, 1]), 2), [0.5, 0.0, 1.0])


def test_counts_are_of_the_items_before_the_last() -> None:
    count_BV = counts(np.array([[4, 7, 4, 9]]))
    assert (count_BV[0, 4], count_BV[0, 7], count_BV[0, 9], count_BV.sum()) == (2, 1, 0, 3)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With several, MKL sums in an order that is another one from time to time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("network", list(PUBLISHED))
def test_a_pass_in_pieces_is_the_pass_and_learns(network: str, tmp_path: Path) -> None:
    records = Records(4 * BLOCK, seed=1)
    whole, first, second = (OnePass(network, records, seed=1, device="cpu") for _ in range(3))
    losses = [whole.learn() for _ in range(3)]
    assert losses[-1] < losses[0]
    first.learn()
    first.save(tmp_path / "state")
    second.load(tmp_path / "state")
    assert [second.learn() for _ in range(2)] == losses[1:]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))


def test_what_is_predicted_is_not_read() -> None:
    """The query at a place does not depend on the items after it."""
    item_BL = torch.from_numpy(Records(BLOCK).block(0)[:2])
    for network in PUBLISHED:
        model = OnePass(network, Records(BLOCK), seed=1, device="cpu").model
        with torch.no_grad():
            torch.testing.assert_close(model(item_BL)[:, 40], model(item_BL[:, :41])[:, 40], rtol=1e-4, atol=1e-5)


def test_the_report_has_what_was_published_beside_what_was_measured(tmp_path: Path) -> None:
    words = ["--records", str(4 * BLOCK), "--seconds", "0", "--state", str(tmp_path / "state")]
    assert command([*words, "--out", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["rows"]
    assert [row["target"] for row in rows if "target" in row] == list(PUBLISHED["hstu"])
    assert rows[2]["name"].endswith("own frequent")
    assert 0 < rows[2]["value"] < rows[3]["value"] < 1
    assert (tmp_path / "state").is_file()
