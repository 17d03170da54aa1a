"""The recorded steps of a line of training: merged from checkpoint, journal and published versions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from trainer.errors import JournalError
from wire.weights import PlanStep


class Plan:
    """Recorded steps of one lineage by number, without gaps from ``first_step`` on.

    ``set_aside``: numbers of steps that are skipped, because they left weights that are not finite.
    """

    def __init__(self, first_step: int) -> None:
        self.first_step = first_step
        self.steps: list[PlanStep] = []
        self.set_aside: set[int] = set()

    @property
    def next_step(self) -> int:
        """Number of the first step that is not recorded."""
        return self.first_step + len(self.steps)

    def merge(
        self, first_step: int, steps: Sequence[PlanStep], *, set_aside: Collection[int] = (), fixed_below: int = 0
    ) -> None:
        """Add steps from a later record: from the first one that differs, they replace those known so far.

        Steps before the plan's first are ignored. Raises `JournalError` for steps that would leave a gap, and for a
        difference below ``fixed_below``, where the steps are already learned.
        """
        skip = max(0, self.first_step - first_step)
        first_step, steps = first_step + skip, list(steps)[skip:]
        if steps and first_step > self.next_step:
            raise JournalError(
                f"plan: expected step {self.next_step} next, got {first_step}: the steps between were not recorded. "
                "Start from the last published version with --from-published"
            )
        for step, recorded in enumerate(steps, start=first_step):
            place = step - self.first_step
            if place < len(self.steps) and self.steps[place] == recorded:
                continue
            if step < fixed_below:
                raise JournalError(
                    f"plan: step {step} of the checkpoint differs from the published one: another trainer took over. "
                    "Name an empty trainer.checkpoint_dir, and this one will follow what was published"
                )
            self.steps[place:] = [recorded]
            self.set_aside = {each for each in self.set_aside if each < step}
        self.set_aside |= {each for each in set_aside if self.first_step <= each < self.next_step}

    def after(self, step: int) -> list[PlanStep]:
        """The steps from number ``step`` on."""
        return self.steps[max(0, step - self.first_step) :]


def parse_steps(steps: Iterable[Any]) -> list[PlanStep]:
    """Steps as decoded from JSON → lists of tuples."""
    return [[(int(partition), int(first), int(last)) for partition, first, last in step] for step in steps]
