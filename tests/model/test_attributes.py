"""What an interaction shares with others, against the words that define it."""

from __future__ import annotations

import numpy as np

from kernels.odds.arrays import NUM_PAUSES
from model.attributes import pauses


def test_a_pause_has_a_row_for_each_doubling_of_its_seconds() -> None:
    seconds = [0, 1, 2, 3, 6, 7, 14, 15, 2**29 - 2, 2**29 - 1, 2**30 - 2, 2**30 - 1, 2**31, 2**40]
    expected = [min((each + 1).bit_length(), NUM_PAUSES - 1) for each in seconds]
    last_ms = np.arange(len(seconds))
    for rest_ms in (0, 999):
        time_ms = last_ms + 1000 * np.array(seconds) + rest_ms
        assert pauses(time_ms, last_ms, np.ones(len(seconds), np.bool_)).tolist() == expected
    assert pauses(last_ms - 5_000, last_ms, True).tolist() == [1] * len(seconds), "a clock that went back"
    assert not pauses(time_ms, last_ms, False).any(), "a user's first interaction"
