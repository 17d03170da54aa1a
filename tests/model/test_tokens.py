"""The rules that turn interactions into tokens, each against a plain loop."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.windows import unpack_kinds
from model.tokens import DOMAINS, FEATURES, Int64, changed, query_times, side_inputs, token_times

USERS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), min_size=1, max_size=4)


def test_action_bits_become_kinds_up_to_the_thirty_second() -> None:
    bits = np.array([0, 1, 5, 1 << 31, (1 << 32) - 1], np.uint32)
    expected = [[float(value >> bit & 1) for bit in range(32)] for value in bits.tolist()]
    np.testing.assert_array_equal(unpack_kinds(bits, 32), expected)
    np.testing.assert_array_equal(unpack_kinds(bits, 3), np.array(expected)[:, :3])
    np.testing.assert_array_equal(unpack_kinds(bits[::2], 32), expected[::2], "a column of a history's rows")


@given(USERS)
def test_of_equal_features_in_a_row_the_earliest_is_a_change(users: list[list[int]]) -> None:
    starts_B1 = np.cumsum([0, *map(len, users)])
    feature_nU = np.concatenate(users)[:, None] // 40
    expected = [now // 40 != before // 40 for user in users for before, now in zip([0, *user[:-1]], user, strict=True)]
    assert changed(feature_nU, starts_B1).tolist() == expected


@given(USERS)
def test_an_action_is_asked_at_the_time_of_what_came_next(users: list[list[int]]) -> None:
    starts_B1 = np.cumsum([0, *map(len, users)])
    time_ms_n = np.concatenate(users).astype(np.int64)
    in_training = [time for user in users for time in [*user[1:], user[-1]]]
    in_serving = [time for index, user in enumerate(users) for time in [*user[1:], 1000 + index]]
    assert query_times(time_ms_n, starts_B1).tolist() == in_training
    assert query_times(time_ms_n, starts_B1, 1000 + np.arange(len(users))).tolist() == in_serving
    key_time_T, query_time_T = token_times(time_ms_n, np.array(in_training))
    assert key_time_T.tolist() == [time for user in users for time in user for _ in range(2)]
    assert query_time_T.tolist() == [t for pair in zip(time_ms_n.tolist(), in_training, strict=True) for t in pair]


def test_side_inputs_are_the_sum_of_the_rows_of_the_tables_in_use() -> None:
    domain_n, feature_nF, user_feature_nF = np.array([7, 0]), np.array([[1, 2], [3, 0]]), np.array([[50], [50]])

    def sums(*in_use: str) -> object:
        def sum_rows(name: str, keys_nF: Int64) -> Tensor | None:
            return torch.from_numpy(keys_nF.sum(axis=1, keepdims=True)) if name in in_use else None

        return sum_rows

    def asked(domain: Int64 | None, *in_use: str) -> object:
        side_nM = side_inputs(domain, feature_nF, user_feature_nF, sums(*in_use))  # type: ignore[arg-type]
        return None if side_nM is None else side_nM[:, 0].tolist()

    assert asked(domain_n, DOMAINS, FEATURES) == [60, 53]
    assert asked(domain_n, FEATURES) == [53, 53]
    assert asked(None, DOMAINS, FEATURES) == [53, 53], "a model without domains"
    assert asked(domain_n) is None


def test_a_model_without_features_asks_no_table_for_them() -> None:
    nothing = np.zeros((2, 0), np.int64)

    def refuse(name: str, keys_nF: Int64) -> Tensor | None:
        raise AssertionError(name)

    assert side_inputs(None, nothing, nothing, refuse) is None
