"""Interactions that are learned once, when their window is over, with all kinds that have arrived by then.

With `TrainerConfig.feedback` "wait", a step folds its examples into the histories at once, but learns the interactions
whose window has passed. A later kind is a piece of its own only if its interaction was learned before.

An interaction is learned in the context of when it was new: those before it have the kinds that were known then. A
server that is asked about a new interaction knows no more; a model that learned from complete pasts would not fit.

The clock is the broker's: the newest record time of the examples that steps have taken. Two times determine
everything: an interaction waits if the steps have taken it and its record is newer than ``learned_ms``. So what a step
learns depends on the steps alone, and a trainer that resumes finds what waits by reading the topic again, as it must
for the histories. While no examples arrive, the clock stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.examples.pieces import Pieces
from wire.example import Lesson
from wire.history import Histories, History

NUM_SEEN = 64
"""For so many interactions before a new one, the kinds as of then are kept; those of earlier ones hardly change."""
MOST_AT_ONCE = 256
"""The most interactions whose window is over that one step learns (more only if they share a millisecond): after a
silence, all that have waited are due at once."""


class _Entry(NamedTuple):
    """An interaction that waits; entries are learned in this order."""

    record_ms: int
    partition: int
    number: int
    place: int
    user: str
    seen: tuple[int, NDArray[np.uint32]]
    """A place, and the kinds of the interactions from there on as they were known when this one was new."""


class Waiting:
    """The interactions that wait. ``max_context``: an interaction is learned at the latest when that many of the user's
    have followed it."""

    def __init__(self, window_ms: int, max_context: int) -> None:
        self._window_ms, self._max_context = window_ms, max_context
        self.clock_ms = 0
        """Newest record time of the examples taken."""
        self.learned_ms = 0
        """Records up to this time are learned."""
        self.covered_offset: dict[int, int] = {}
        """Partition → the last action offset up to which all actions are learned."""
        self._queue: list[_Entry] = []
        self._waits: dict[str, dict[int, _Entry]] = {}
        """User → place → the entry."""
        self._due: list[_Entry] = []
        """What the step that is being formed learns at once."""
        self._offsets: dict[int, deque[tuple[int, int]]] = {}
        """Partition → record time of each example and what it covers, in their order."""

    def __len__(self) -> int:
        return sum(len(places) for places in self._waits.values())

    def choose(self, examples: Sequence[Lesson], touched: Sequence[History], histories: Histories) -> Pieces:
        """What a step teaches (`trainer.examples.pieces.Choose`), once all of its examples were taken."""
        late = [(each, history, *_late(each, self._waits.get(each.user, {})))
                for each, history in zip(examples, touched, strict=True) if each.num_feedback]  # fmt: skip
        self.clock_ms = max([self.clock_ms, *(each.newest_record_ms for each in examples)])
        due, self._due = [*self._due, *self._over()], []
        self._cover()
        pieces = Pieces()
        for entry in due:
            _put_known(pieces, entry, histories.users[entry.user])
        for example, history, places, bits in late:
            _put(pieces, history, example, places, bits, is_new=False)
        return pieces

    def resume(self, learned_ms: int) -> None:
        """Continue where records up to this time are learned."""
        self.learned_ms, self.clock_ms = learned_ms, learned_ms + self._window_ms

    def restore(self, example: Lesson, history: History | None) -> None:
        """Take an example that a step took before the checkpoint; no history: of a user who was forgotten since."""
        self._note(example) if history is None else self.take(example, history)
        self._due.clear()  # is learned
        self._cover()

    def drop(self, user: str) -> None:
        """Forget a user."""
        self._waits.pop(user, None)

    def take(self, example: Lesson, history: History) -> None:
        """Let the new interactions of an example wait, which has just been folded into the user's history."""
        self._note(example)
        record_ms, first = example.newest_record_ms, example.first_new_index
        if not example.num_new:
            return
        places = self._waits.setdefault(example.user, {})
        begin, rows = history.window(first - NUM_SEEN, first + example.num_new)
        seen = begin, np.array(rows["bits"])
        for place in range(first, first + example.num_new):
            entry = _Entry(record_ms, example.partition, example.number, place, example.user, seen)
            if record_ms <= self.learned_ms:
                self._due.append(entry)
            else:
                places[place] = entry
                heappush(self._queue, entry)
        while places and (oldest := next(iter(places))) < first + example.num_new - self._max_context:
            self._due.append(places.pop(oldest))
        if not places:
            del self._waits[example.user]

    def _note(self, example: Lesson) -> None:
        """Note what is covered once everything up to this example is learned."""
        covered = example.newest_record_ms, example.resume_from_offset - 1
        self._offsets.setdefault(example.partition, deque()).append(covered)

    def _over(self) -> Iterator[_Entry]:
        """The entries whose window is over."""
        queue, until_ms, num = self._queue, self.clock_ms - self._window_ms, 0
        while (
            queue and queue[0].record_ms <= until_ms and (num < MOST_AT_ONCE or queue[0].record_ms <= self.learned_ms)
        ):
            entry = heappop(queue)
            self.learned_ms = entry.record_ms
            places = self._waits.get(entry.user, {})
            if places.get(entry.place) is entry:  # and not learned or forgotten meanwhile
                del places[entry.place]
                if not places:
                    del self._waits[entry.user]
                num += 1
                yield entry
        if not queue or queue[0].record_ms > until_ms:
            self.learned_ms = max(self.learned_ms, until_ms)

    def _cover(self) -> None:
        for partition, offsets in self._offsets.items():
            while offsets and offsets[0][0] <= self.learned_ms:
                self.covered_offset[partition] = offsets.popleft()[1]


def _put(
    pieces: Pieces, history: History, of: Lesson | _Entry, places: list[int], bits: list[int], *, is_new: bool
) -> int:
    """Add pieces that come from an example; returns the user's number, -1 without pieces."""
    if not places:
        return -1
    owner = pieces.number_of.get(of.user)
    if owner is None:
        owner = pieces.begin(of.user, history, of.partition, of.number)
    pieces.put(owner, places, bits, is_new=is_new)
    return owner


def _put_known(pieces: Pieces, entry: _Entry, history: History) -> None:
    """Add an interaction with all kinds that it has by now, unless its place was lost with missing examples."""
    _, rows = history.window(entry.place, entry.place + 1)
    owner = _put(pieces, history, entry, [entry.place] * len(rows), rows["bits"].tolist(), is_new=True)
    if owner >= 0:
        pieces.seen.append((owner, entry.place, *entry.seen))


def _late(example: Lesson, waits: dict[int, _Entry]) -> tuple[list[int], list[int]]:
    """Places and kinds of interactions that have been learned already."""
    places = (example.first_index + example.feedback_index).tolist()
    pieces = [
        (place, bits) for place, bits in zip(places, example.feedback_bits.tolist(), strict=True) if place not in waits
    ]
    return [place for place, _ in pieces], [bits for _, bits in pieces]
