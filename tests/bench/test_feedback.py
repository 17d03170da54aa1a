"""How ways to learn late feedback are compared."""

from __future__ import annotations

from bench.feedback import FullHistories, since
from bench.streams.simulated import steps


def test_what_was_learned_with_its_outcome_is_not_told_again() -> None:
    every, known = list(steps(1_500, seed=1, world="late")), FullHistories()
    for examples in every[:10]:
        known.fold(examples)
    ends = {user: history.end for user, history in known.users.items()}
    before = [each for examples in every[10:] for each in examples]
    after = since(ends, before)
    assert [each.num_new for each in after] == [each.num_new for each in before]
    assert all((each.first_index + each.feedback_index >= ends.get(each.user, 0)).all() for each in after)
    assert 0 < sum(each.num_feedback for each in after) < sum(each.num_feedback for each in before)
