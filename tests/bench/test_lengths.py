"""Stochastic length leaves out about as much as published."""

from __future__ import annotations

import pytest

from bench.lengths import PUBLISHED, sparsity


@pytest.mark.parametrize("sometimes_whole", [False, True])
@pytest.mark.parametrize("num_tokens", [num for num, published in PUBLISHED.items() if published is not None])
def test_the_sparsity_of_whole_contexts_is_within_five_points_of_the_published(
    num_tokens: int, sometimes_whole: bool
) -> None:
    published = PUBLISHED[num_tokens]
    assert sparsity(num_tokens, sometimes_whole=sometimes_whole, num_users=400) == pytest.approx(published, abs=0.05)
