"""What a step's examples teach: pieces, each a new interaction with its kinds, or later kinds of an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from wire.example import Lesson
from wire.history import Histories, History

Int64 = NDArray[np.int64]
Bits = NDArray[np.uint32]
Bools = NDArray[np.bool_]


@dataclass(slots=True, eq=False)
class Pieces:
    """All pieces of a step, as they are found: for each user a history, a seed and a key; for each piece its user, its
    place in that user's lifetime, its kinds, and whether the interaction is new. Those of one user may stand in several
    places.

    ``seen``: of some pieces user, place, and the kinds of the interactions from another place on as they were known
    when the piece's interaction was new; before the others they count as they are known now.
    """

    number_of: dict[str, int] = field(default_factory=dict)
    histories: list[History] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    user_keys: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    bits: list[int] = field(default_factory=list)
    is_new: list[bool] = field(default_factory=list)
    seen: list[tuple[int, int, int, Bits]] = field(default_factory=list)

    def begin(self, user: str, history: History, partition: int, number: int) -> int:
        """The number of a user of whom there is no piece yet. The seed is derived from the first example."""
        owner = self.number_of[user] = len(self.histories)
        self.histories.append(history)
        self.seeds.append((partition << 40) + number)  # of no other example
        self.user_keys.append(_key_of(user))
        return owner

    def put(self, owner: int, places: Sequence[int], bits: Iterable[int], *, is_new: bool) -> None:
        """Add pieces of one user."""
        self.owners += [owner] * len(places)
        self.places += places
        self.bits += bits
        self.is_new += [is_new] * len(places)

    def still_there(self) -> Pieces:
        """The pieces whose interactions are in their users' histories: after a gap (`trainer.on_gap`), a history begins
        anew, without what the same step has taught before."""
        pieces = zip(self.owners, self.places, self.bits, self.is_new, strict=True)
        there = [each for each in pieces if self.histories[each[0]].start <= each[1] < self.histories[each[0]].end]
        owners = sorted({owner for owner, *_ in there})
        number = {owner: new for new, owner in enumerate(owners)}
        return Pieces(
            number_of={user: number[owner] for user, owner in self.number_of.items() if owner in number},
            histories=[self.histories[owner] for owner in owners],
            seeds=[self.seeds[owner] for owner in owners],
            user_keys=[self.user_keys[owner] for owner in owners],
            owners=[number[owner] for owner, *_ in there],
            places=[place for _, place, _, _ in there],
            bits=[bits for _, _, bits, _ in there],
            is_new=[is_new for *_, is_new in there],
            seen=[(number[each[0]], each[1], each[2], each[3]) for each in self.seen if each[0] in number],
        )


Choose = Callable[[Sequence[Lesson], Sequence[History], Histories], Pieces]
"""What a step teaches, from its examples, the histories that they were folded into, and all histories."""


def taught_at_once(examples: Sequence[Lesson], touched: Sequence[History], histories: Histories) -> Pieces:
    """Every piece of the examples."""
    del histories
    pieces = Pieces()
    find, put = pieces.number_of.get, pieces.put
    for each, history in zip(examples, touched, strict=True):
        num_new, num_later = each.num_new, len(each.feedback_index)
        if num_new or num_later:
            owner = find(each.user)
            if owner is None:
                owner = pieces.begin(each.user, history, each.partition, each.number)
            held, first = each.rows["bits"], each.segment * each.segment_len + each.first
            if num_new == 1:  # as nearly always in live traffic
                pieces.owners.append(owner)
                pieces.places.append(first + len(held) - 1)
                pieces.bits.append(held.item(-1))
                pieces.is_new.append(True)
            elif num_new:
                end, new = first + len(held), held[-num_new:].tolist()
                put(owner, range(end - num_new, end), new, is_new=True)
            if num_later:
                put(owner, (first + each.feedback_index).tolist(), each.feedback_bits.tolist(), is_new=False)
    return pieces


@lru_cache(maxsize=1 << 16)
def _key_of(user: str) -> int:
    # Not `wire.hashing`: this module needs nothing but torch and NumPy.
    return int.from_bytes(blake2b(user.encode(), digest_size=8).digest(), "little", signed=True)


def merge(pieces: Pieces) -> tuple[Int64, Int64, Bits, Bools]:
    """Merge the pieces of each interaction: owners, places, kinds, and whether it is new, sorted by owner and place."""
    owner, place = np.array(pieces.owners, np.int64), np.array(pieces.places, np.int64)
    bits, is_new = np.array(pieces.bits, np.uint32), np.array(pieces.is_new, np.bool_)
    later = owner[1:] - owner[:-1]
    if ((later > 0) | ((later == 0) & (place[1:] > place[:-1]))).all():
        return owner, place, bits, is_new
    order = np.lexsort((place, owner))
    owner, place = owner[order], place[order]
    differs = np.ones(len(order), np.bool_)
    differs[1:] = (owner[1:] != owner[:-1]) | (place[1:] != place[:-1])
    starts = np.flatnonzero(differs)
    bits = np.bitwise_or.reduceat(bits[order], starts)
    return owner[starts], place[starts], bits, np.logical_or.reduceat(is_new[order], starts)
