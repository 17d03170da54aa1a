"""Steps that the model skips, because the numbers that they left were not finite."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from trainer.checkpoint.journal import Journal
from trainer.copies.soundness import Unsound
from trainer.errors import UnsoundError
from trainer.learner.step import Learner
from wire.example import Lesson

log = structlog.get_logger("trainer")
MAX_SET_ASIDE = 3
"""If this many steps in a row leave numbers that are not finite, the examples are not to blame: the trainer stops."""


class SetAside:
    """The steps that were set aside in this line of training."""

    def __init__(self) -> None:
        self.steps: set[int] = set()
        self.num_interactions = 0
        """How many interactions the model did not learn because of it."""
        self._checked_until = 0

    def resume(self, steps: set[int], num_interactions: int) -> None:
        """Continue from what was recorded."""
        self.steps, self.num_interactions = steps, num_interactions

    def __contains__(self, step: int) -> bool:
        return step in self.steps

    def is_checked(self, step: int) -> bool:
        """Whether all of the learner is checked right after this step, which may be the one that spoils it."""
        return step < self._checked_until

    def check_until(self, step: int) -> None:
        """Have each step before this one checked, when they are repeated."""
        self._checked_until = max(self._checked_until, step)

    def add(self, step: int, problem: Unsound, journal: Journal, checkpoint: int) -> None:
        """Set a step aside, and record it.

        If the steps before it were set aside too, revoke that, from the newest checkpoint's step (``checkpoint``) on,
        and raise `UnsoundError`: a trainer with other settings may be able to learn them.
        """
        self.steps.add(step)
        run = {step - back for back in range(MAX_SET_ASIDE)}
        if run <= self.steps:
            recorded = journal.read(checkpoint)
            journal.start(checkpoint, recorded.steps, recorded.set_aside - run)
            raise UnsoundError(
                f"steps {min(run)} to {max(run)}: each left numbers that are not finite ({problem.what}). Their "
                f"results are discarded, and the checkpoint at step {checkpoint} is good. Lower trainer.dense_lr and "
                "trainer.table_lr and name an empty trainer.checkpoint_dir; or look for extreme values in the data"
            )
        journal.append(step, None)
        log.error("a step is set aside: it left numbers that are not finite", step=step, what=problem.what)


def pass_over(learner: Learner, examples: Sequence[Lesson]) -> int:
    """Skip a step that is set aside: histories and names record it, but the model learns nothing from it; what is
    due to be evicted is. Returns how many interactions it would have learned: with ``trainer.feedback`` "wait" those
    whose window ends with it."""
    histories = learner.histories
    learner.apply_marks([example for example in examples if example.mark is not None])
    taken = [example for example in examples if example.mark is None]
    pieces = histories.choose(taken, [histories.fold(example) for example in taken], histories)
    for example in taken:
        learner.names.learn(example.names)
    histories.bound()
    learner.evict_if_due()
    learner.num_steps += 1
    return sum(pieces.is_new)
