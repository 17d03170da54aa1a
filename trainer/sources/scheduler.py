"""Which examples make up a step: a new batch of those that have arrived, or a recorded step again.

A step names contiguous numbers per partition. Within a partition, examples are taken in the order of their numbers;
across partitions the oldest goes first, so that no partition waits behind another's backlog. Which examples have
arrived depends on timing, so each step is a decision: it is journalled before it is trained
(`trainer.checkpoint.journal`) and published with the weights (`wire.weights`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from trainer.errors import GapError
from wire.example import Lesson
from wire.weights import PlanStep


class Scheduler:
    """Examples that have arrived and are not trained yet: a queue per partition, in the order of their numbers."""

    def __init__(self, max_context: int, max_tokens: int, max_targets: int) -> None:
        self._waiting: dict[int, deque[Lesson]] = {}
        self._max_context, self._max_tokens, self._max_targets = max_context, max_tokens, max_targets
        self.num_waiting = self.num_targets = 0

    def add(self, examples: Iterable[Lesson]) -> None:
        """Queue examples that have arrived."""
        for example in examples:
            self._waiting.setdefault(example.partition, deque()).append(example)
            self.num_waiting += 1
            self.num_targets += num_pieces(example)

    def oldest_record_ms(self) -> dict[int, int]:
        """Partition → ``newest_record_ms`` of the example that has waited longest; only partitions that have any."""
        return {partition: queue[0].newest_record_ms for partition, queue in self._waiting.items() if queue}

    def next_batch(self) -> tuple[PlanStep, list[Lesson]] | None:
        """The next step and its examples: as many as fit the budget, at least one; None if nothing waits."""
        taken, users = dict[int, list[Lesson]](), set[str]()
        num_tokens = num_targets = 0
        while (partition := self._next_partition()) is not None:
            example = self._waiting[partition][0]
            if example.mark is not None:  # a step of its own
                if not taken:
                    taken[partition] = [self._pop(partition)]
                break
            tokens, targets = self._tokens(example, example.user in users), num_pieces(example)
            if taken and (num_tokens + tokens > self._max_tokens or num_targets + targets > self._max_targets):
                break
            taken.setdefault(partition, []).append(self._pop(partition))
            users.add(example.user)
            num_tokens, num_targets = num_tokens + tokens, num_targets + targets
        if not taken:
            return None
        examples = [example for partition in sorted(taken) for example in taken[partition]]
        return ranges(examples), examples

    def _tokens(self, example: Lesson, is_known: bool) -> int:
        """Roughly how many tokens an example adds to a step, in which each user has one sequence."""
        pieces = num_pieces(example)
        context = 0 if is_known or not pieces else min(example.first_new_index, self._max_context)
        return 2 * (context + pieces)

    def _next_partition(self) -> int | None:
        heads = [(queue[0].newest_record_ms, partition) for partition, queue in self._waiting.items() if queue]
        return min(heads)[1] if heads else None

    def _pop(self, partition: int) -> Lesson:
        example = self._waiting[partition].popleft()
        self.num_waiting -= 1
        self.num_targets -= num_pieces(example)
        return example

    def replay_batch(self, step: PlanStep) -> list[Lesson] | None:
        """The examples of a recorded step, or None if some of them have not arrived yet."""
        for partition, _, last in step:
            queue = self._waiting.get(partition)
            if not queue or queue[-1].number < last:
                return None
        return [example for part in step for example in self._take(*part)]

    def _take(self, partition: int, first: int, last: int) -> Sequence[Lesson]:
        queue, examples = self._waiting[partition], list[Lesson]()
        while queue and queue[0].number <= last:
            examples.append(self._pop(partition))
        got = ranges(examples)
        if got != [(partition, first, last)]:
            numbers = ", ".join(f"{low} to {high}" for _, low, high in got) or f"{queue[0].number} next"
            raise GapError(
                f"plan: expected examples {first} to {last} of partition {partition}, got {numbers}: the others were "
                "compacted or deleted, and a recorded step is never repeated in part (whatever trainer.on_gap is), or "
                "the checkpoint belongs to another stream. Name an empty trainer.checkpoint_dir, and start from "
                "the last published version, with --from-published"
            )
        return examples


def num_pieces(example: Lesson) -> int:
    """How many interactions an example teaches something about."""
    return example.num_new + example.num_feedback


def num_in(step: PlanStep) -> int:
    """How many examples a recorded step has."""
    return sum(last - first + 1 for _, first, last in step)


def ranges(examples: Sequence[Lesson]) -> PlanStep:
    """The examples' numbers as runs, in the order given."""
    step: PlanStep = []
    for example in examples:
        if step and step[-1][0] == example.partition and step[-1][2] + 1 == example.number:
            step[-1] = (example.partition, step[-1][1], example.number)
        else:
            step.append((example.partition, example.number, example.number))
    return step
