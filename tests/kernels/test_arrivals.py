"""Numbers of the newest interactions against a dictionary of each key's last number."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.arrivals import NumberedKeys


class Numbered:
    """The definition."""

    def __init__(self, most: int) -> None:
        self.most, self.num, self.came = most, 0, list[int]()

    def number(self, key_R: np.ndarray, is_new_R: np.ndarray, order_R: np.ndarray) -> np.ndarray:
        first = max(0, self.num - self.most)
        known = {key: first + nth for nth, key in enumerate(self.came[first:])}
        number_R = np.array([-1 if new else known.get(int(key), -1) for key, new in zip(key_R, is_new_R, strict=True)])
        for r in order_R.tolist():
            if is_new_R[r]:
                number_R[r] = self.num
                self.came.append(int(key_R[r]))
                self.num += 1
        return number_R

    def num_known(self) -> int:
        return len(set(self.came[max(0, self.num - self.most) :]))


@pytest.mark.parametrize(("most", "num_keys"), [(1, 3), (7, 12), (100, 90), (100, 1000)])
@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_those_of_the_definition(seed: int, most: int, num_keys: int) -> None:
    """Keys come again, are forgotten, share slots; steps are longer than the ring."""
    rng, keys, defined = np.random.default_rng(seed), NumberedKeys(most), Numbered(most)
    known = rng.integers(-(2**62), 2**62, num_keys)
    known[0] = 0
    for step in range(60):
        key_R = rng.choice(known, rng.integers(0, 2 * most + 3) if step % 5 == 0 else rng.integers(0, 9))
        is_new_R, order_R = rng.random(len(key_R)) < 0.6, rng.permutation(len(key_R))
        num, expected = defined.num, defined.number(key_R, is_new_R, order_R)
        found_R, num_found = keys.number(key_R, is_new_R, order_R, num)
        np.testing.assert_array_equal(found_R, expected)
        assert num_found == (expected[~is_new_R] >= 0).sum()
        assert keys.num_known == defined.num_known()
        if step % 7 == 0:
            keys = keys.copy()


def test_without_an_order_new_ones_are_numbered_in_theirs() -> None:
    keys, every = NumberedKeys(10), np.ones(3, np.bool_)
    assert keys.number(np.array([5, 6, 5]), every, None, 0)[0].tolist() == [0, 1, 2]
    assert keys.number(np.array([5, 6, 7]), ~every, None, 3)[0].tolist() == [2, 1, -1]
    keys.clear()
    assert keys.number(np.array([5, 6, 7]), ~every, None, 3)[0].tolist() == [-1, -1, -1]
