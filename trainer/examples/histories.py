"""Users' histories as a trainer keeps them: bounded in bytes, and the same after a restart.

A trainer folds examples in the order of its steps (`wire.history`). Beyond ``max_bytes`` the users that have been quiet
longest are forgotten; the history of one who returns starts with the segment of the new action. Only the steps decide
which users are forgotten, so a replay forgets the same ones. A resumed trainer reads the topic again, which has all
users; so a checkpoint says which users the trainer knew, and from which example on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.examples.pieces import Choose, taught_at_once
from trainer.examples.waiting import Waiting
from wire.example import Lesson, Mark, row_type
from wire.history import OVERHEAD_BYTES, Histories, History

LEFT_SHARE = 0.9
"""Forgetting stops at this share of the bound, so that not every step has to forget users."""


class TrainedHistories(Histories):
    """`Histories` that take a step's examples by `gather`, and those from before a checkpoint by `restore`.

    ``window_ms``: interactions wait that long before they are learned (`trainer.examples.waiting`).
    """

    def __init__(self, max_context: int, max_bytes: int, num_features: int, window_ms: int | None = None) -> None:
        super().__init__(max_context)
        self.waiting = Waiting(window_ms, max_context) if window_ms is not None else None
        self._max_bytes, self._row_bytes = max_bytes, row_type(num_features).itemsize
        self._born: dict[str, int] = {}
        """User → number of the first of their examples that is in the history."""
        self._touched: dict[str, int] = {}
        """User → when they last acted, counted in examples of all users; of those restored for a new line of training
        the record's time (ms), from the newest of which it counts on."""
        self.unsaved: dict[str, None] = {}
        """Users seen or forgotten since a checkpoint recorded them (`trainer.copies.regions`)."""
        self._num_touches = 0
        self._is_resumed = False
        self.removed: set[int] = set()
        """Items that were marked, among what was folded."""

    @property
    def num_kept_bytes(self) -> int:
        """Bytes that the rows of all users need, not those allocated: a function of the steps."""
        return self.num_rows * self._row_bytes + len(self.users) * OVERHEAD_BYTES

    def covered(self, taken: dict[int, int]) -> dict[int, int]:
        """Partition → the action offset up to which all actions are learned; ``taken``: up to which steps took them."""
        waiting = self.waiting
        return taken if waiting is None else {each: waiting.covered_offset.get(each, -1) for each in taken}

    @property
    def choose(self) -> Choose:
        """What a step teaches."""
        return taught_at_once if self.waiting is None else self.waiting.choose

    def gather_all(self, lessons: Iterable[Lesson]) -> list[History]:
        """As `Histories.gather_all`; also notes that the users have acted."""
        lessons = list(lessons)
        users = [lesson.user for lesson in lessons]
        first, self._num_touches = self._num_touches + 1, self._num_touches + len(users)
        self._touched.update(zip(users, range(first, first + len(users)), strict=True))
        self.unsaved.update(dict.fromkeys(users))
        if self.waiting is None:
            return super().gather_all(lessons)
        return [self._gather_waiting(each) for each in lessons]

    def _gather_waiting(self, lesson: Lesson) -> History:
        """One at a time: what is known now of the interactions before it, a later record may change."""
        assert self.waiting is not None
        (history,) = super().gather_all((lesson,))
        self.waiting.take(lesson, history)
        return history

    def begin(self, lesson: Lesson) -> History:
        """As `Histories.begin`; also notes that the trainer has the user from this example on."""
        self._born.setdefault(lesson.user, lesson.number)
        return super().begin(lesson)

    def drop(self, user: str) -> None:
        """Forget a user."""
        super().drop(user)
        if self.waiting is not None:
            self.waiting.drop(user)
        del self._born[user], self._touched[user]
        self.unsaved[user] = None

    @property
    def known(self) -> Collection[str]:
        """Users that a checkpoint has to name."""
        return self._born.keys()

    def known_since(self, user: str) -> tuple[int, int] | None:
        """The user's first example, and when the user acted last, in examples of all users; None if forgotten."""
        born = self._born.get(user)
        return None if born is None else (born, self._touched[user])

    def small(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint holds besides the users."""
        waiting = self.waiting
        times = [waiting.clock_ms, waiting.learned_ms] if waiting is not None else []
        return {"num_touches": np.array([self._num_touches], np.int64), "waiting_ms": np.array(times, np.int64)}

    def apply_mark(self, mark: Lesson) -> None:
        """Forget the users who are marked."""
        for user in mark.forgotten:
            if user in self.users:
                self.drop(user)
        if mark.mark is Mark.ITEM:
            self.removed.add(mark.marked_item)
        elif mark.mark is Mark.ITEM_BACK:
            self.removed.discard(mark.marked_item)

    def bound(self) -> int:
        """Forget users until the rest fits; returns how many. To be called after each step."""
        if self.num_kept_bytes <= self._max_bytes:
            return 0
        num_before = len(self.users)
        for user in sorted(self.users, key=lambda each: (self._touched[each], each)):
            if self.num_kept_bytes <= LEFT_SHARE * self._max_bytes:
                break
            self.drop(user)
        return num_before - len(self.users)

    def restore(self, example: Lesson) -> None:
        """Take an example that was trained before the checkpoint, in the order of its partition."""
        if example.mark is not None:
            if not self._is_resumed or example.marked_item:
                self.apply_mark(example)
            return
        if self._is_resumed:
            if example.number < self._born.get(example.user, example.number + 1):
                if self.waiting is not None:
                    self.waiting.restore(example, None)
                return
        else:  # a new line of training, which starts after examples that another line has trained
            self._num_touches = max(self._num_touches, example.newest_record_ms)
            self._touched[example.user] = example.newest_record_ms
            self.unsaved[example.user] = None
        (history,) = super().gather_all((example,))
        if self.waiting is not None:
            self.waiting.restore(example, history)
        self.settle(history)
        if not self._is_resumed:
            self.bound()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Which users the trainer knows, for a checkpoint; what they did comes from the source."""
        users = sorted(self._born)
        return {
            "users": np.frombuffer(json.dumps(users, ensure_ascii=False).encode(), np.uint8),
            "born": np.array([self._born[user] for user in users], np.int64),
            "touched": np.array([self._touched[user] for user in users], np.int64),
            **self.small(),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Have `restore` take exactly what the trainer knew at the checkpoint."""
        users = json.loads(state["users"].tobytes())
        self._born = dict(zip(users, state["born"].tolist(), strict=True))
        self._touched = dict(zip(users, state["touched"].tolist(), strict=True))
        self._num_touches = int(state["num_touches"][0])
        self._is_resumed = self._num_touches > 0
        if self.waiting is not None:
            self.waiting.clock_ms, self.waiting.learned_ms = state["waiting_ms"].tolist()
