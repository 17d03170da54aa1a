"""Ranks and best rows against a full sort."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import rank_of_target, top_k
from tests.kernels.yardstick import assert_same_bits, force, levels


def excluded_lists(num_queries: int, num_rows: int, longest: int) -> dict[str, Tensor]:
    offsets_R1 = torch.zeros(num_queries + 1, dtype=torch.int64)
    offsets_R1[1:] = torch.randint(0, longest + 1, (num_queries,)).cumsum(0)
    rows = torch.randint(0, num_rows, (int(offsets_R1[-1]),))
    return {"exclude_rows": rows, "exclude_offsets_R1": offsets_R1}


def exact_inputs(num_queries: int, num_rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Small integers: every score is exact in float32, and many are equal."""
    query_RD = torch.randint(-2, 3, (num_queries, width)).float()
    table_VD = torch.randint(-2, 3, (num_rows, width)).float()
    return query_RD, table_VD, torch.randint(0, num_rows, (num_queries,))


def assert_equal_to_reference(query_RD: Tensor, table_VD: Tensor, target_R: Tensor, k: int, **options: Any) -> None:
    exact = (query_RD.double(), table_VD.double())
    rank_R = rank_of_target(query_RD, table_VD, target_R, **options)
    assert torch.equal(rank_R, rank_of_target(*exact, target_R, backend="reference", **options))
    score_Rk, row_Rk = top_k(query_RD, table_VD, k, **options)
    exact_score_Rk, exact_row_Rk = top_k(*exact, k, backend="reference", **options)
    assert torch.equal(row_Rk, exact_row_Rk)
    torch.testing.assert_close(score_Rk.double(), exact_score_Rk, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 300, 17), (70, 1000, 50), (130, 777, 64)])
def test_ranks_and_best_rows_with_ties_are_the_references(
    monkeypatch: pytest.MonkeyPatch, level: str, shape: tuple[int, int, int]
) -> None:
    force(monkeypatch, level)
    torch.manual_seed(0)
    query_RD, table_VD, target_R = exact_inputs(*shape)
    k = min(20, shape[1])
    assert_equal_to_reference(query_RD, table_VD, target_R, k, normalize=False)
    options = {"valid_V": torch.rand(shape[1]) < 0.8, **excluded_lists(shape[0], shape[1], 60)}
    assert_equal_to_reference(query_RD, table_VD, target_R, k, normalize=False, **options)


@given(num_queries=st.integers(0, 9), num_rows=st.integers(1, 600), width=st.integers(1, 9), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_any_shape_is_the_references(num_queries: int, num_rows: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    options = {"valid_V": torch.rand(num_rows) < 0.9, **excluded_lists(num_queries, num_rows, 30)}
    inputs = exact_inputs(num_queries, num_rows, width)
    k = int(torch.randint(1, min(num_rows, 40) + 1, ()))
    assert_equal_to_reference(*inputs, k, normalize=False, **options)


@pytest.mark.parametrize("level", levels())
def test_equal_rows_tie_exactly_after_normalising(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    force(monkeypatch, level)
    torch.manual_seed(0)
    query_RD = torch.randn(40, 50)
    table_VD = torch.randn(8, 50).repeat(125, 1)
    rank_R = rank_of_target(query_RD, table_VD, torch.arange(40))
    # 8 kinds of rows, 125 of each: 125 for each better kind, and half of the 124 others of the same kind.
    assert bool(((rank_R - 1 - 62) % 125 == 0).all())


def test_normal_rows_rank_between_the_scores_a_rounding_away() -> None:
    torch.manual_seed(0)
    query_RD, table_VD, target_R = torch.randn(50, 64), torch.randn(5000, 64), torch.randint(0, 5000, (50,))
    unit_VD = torch.nn.functional.normalize(table_VD.double(), dim=-1)
    score_RV = query_RD.double() @ unit_VD.T
    target_R1 = score_RV.gather(1, target_R[:, None])
    rank_R = rank_of_target(query_RD, table_VD, target_R)
    assert bool((rank_R >= 1 + (score_RV > target_R1 + 1e-4).sum(1)).all())
    assert bool((rank_R <= 1 + (score_RV > target_R1 - 1e-4).sum(1)).all())


def test_a_constant_scorer_gets_the_middle_rank_and_a_nan_the_last() -> None:
    table_VD, target_R = torch.randn(101, 6), torch.tensor([0, 50])
    assert rank_of_target(torch.zeros(2, 6), table_VD, target_R).tolist() == [51, 51]
    broken = torch.full((2, 6), float("nan"))
    for backend in ("cpp", "reference"):
        broken_row = table_VD.clone()
        broken_row[50] = float("nan")
        assert rank_of_target(torch.ones(2, 6), broken_row, target_R, backend=backend)[1] == 101
        assert rank_of_target(broken, table_VD, target_R, backend=backend).tolist() == [101, 101]


def test_the_target_is_judged_even_if_invalid_or_excluded() -> None:
    query_RD = torch.tensor([[1.0, 0.0]])
    table_VD = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    options = {"exclude_rows": torch.tensor([1, 0, 0]), "exclude_offsets_R1": torch.tensor([0, 3])}
    valid_V = torch.tensor([True, False, True])
    ranks = rank_of_target(query_RD, table_VD, torch.tensor([1]), normalize=False, valid_V=valid_V, **options)
    assert ranks.tolist() == [1]


def test_fewer_candidates_than_k_leave_empty_places() -> None:
    table_VD = torch.eye(4)
    valid_V = torch.tensor([False, True, False, True])
    score_Rk, row_Rk = top_k(torch.ones(1, 4), table_VD, 3, valid_V=valid_V)
    assert row_Rk.tolist() == [[1, 3, -1]]
    assert score_Rk[0, 2] == float("-inf")


def test_any_number_of_threads_gives_the_same_answer() -> None:
    torch.manual_seed(0)
    query_RD, table_VD, target_R = exact_inputs(70, 3000, 4)
    assert_same_bits(lambda: (rank_of_target(query_RD, table_VD, target_R), *top_k(query_RD, table_VD, 50)), (1, 2, 5))


def test_bfloat16_rows_are_scored_as_what_they_hold() -> None:
    torch.manual_seed(0)
    query_RD, table_VD, target_R = exact_inputs(20, 500, 16)
    inputs = (query_RD.bfloat16(), table_VD.bfloat16(), target_R)
    assert torch.equal(
        rank_of_target(*inputs, normalize=False), rank_of_target(query_RD, table_VD, target_R, normalize=False)
    )
    for left, right in zip(
        top_k(*inputs[:2], 9, normalize=False), top_k(query_RD, table_VD, 9, normalize=False), strict=True
    ):
        assert torch.equal(left, right)


def test_bad_arguments_say_what_was_expected() -> None:
    query_RD, table_VD, target_R = exact_inputs(2, 5, 3)
    with pytest.raises(ValueError, match="k: expected 1 to the table's 5 rows, got 6"):
        top_k(query_RD, table_VD, 6)
    with pytest.raises(ValueError, match="expected both or neither"):
        top_k(query_RD, table_VD, 2, exclude_rows=torch.zeros(0, dtype=torch.int64))
    past_end, whole = torch.tensor([0, 0, 2]), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="expected offsets rising from 0 to 1"):
        rank_of_target(query_RD, table_VD, target_R, exclude_rows=torch.tensor([1]), exclude_offsets_R1=past_end)
    with pytest.raises(IndexError, match="exclude_rows: expected rows 0 to 4, got 5 to 5"):
        rank_of_target(query_RD, table_VD, target_R, exclude_rows=torch.tensor([5]), exclude_offsets_R1=whole)
