"""What a step's examples teach: pieces, each a new interaction with its kinds, or later kinds of an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wire.example import Lesson
from wire.history import Histories, History

Int64 = NDArray[np.int64]
Bits = NDArray[np.uint32]
Bools = NDArray[np.bool_]


class Taught(NamedTuple):
    """Pieces of one user: their places in the user's lifetime, their kinds, and whether each interaction is new.

    ``seed`` is derived from the example that they come from. ``seen``: a place, and the kinds of the interactions from
    there on as they were known when the only piece's interaction was new; None: they count as they are known now.
    """

    user: str
    history: History
    seed: int
    places: list[int]
    bits: list[int]
    is_new: list[bool]
    seen: tuple[int, Bits] | None = None


Choose = Callable[[Sequence[Lesson], Sequence[History], Histories], list[Taught]]
"""What a step teaches, from its examples, the histories that they were folded into, and all histories."""


def taught_at_once(examples: Sequence[Lesson], touched: Sequence[History], histories: Histories) -> list[Taught]:
    """Every piece of the examples."""
    del histories
    return [
        _taught_by(example, history)
        for example, history in zip(examples, touched, strict=True)
        if example.num_new or example.num_feedback
    ]


def seed_of(partition: int, number: int) -> int:
    """A number for an example of a partition, which no other example has."""
    return (partition << 40) + number


def _taught_by(example: Lesson, history: History) -> Taught:
    num_new, held = example.num_new, example.rows["bits"]
    first, num = example.first_index, len(held)
    places = [first + num - 1] if num_new == 1 else list(range(first + num - num_new, first + num))
    bits = held[num - num_new :].tolist()
    is_new = [True] * num_new
    if num_feedback := example.num_feedback:
        places = (first + example.feedback_index).tolist() + places
        bits = example.feedback_bits.tolist() + bits
        is_new = [False] * num_feedback + is_new
    return Taught(example.user, history, seed_of(example.partition, example.number), places, bits, is_new)


@dataclass(slots=True, eq=False)
class Pieces:
    """All pieces of a step: for each user a history, a seed and a key; for each piece its user, its place
    in that user's lifetime, its kinds, and whether the interaction is new."""

    histories: list[History]
    seeds: list[int]
    user_keys: list[int]
    owner_P: Int64
    place_P: Int64
    bits_P: Bits
    is_new_P: Bools
    seen: list[tuple[int, int, int, Bits]]
    """Of some pieces: user, place, and the kinds of the interactions from another place on, as known then."""


def pieces_of(taught: Sequence[Taught]) -> Pieces:
    """The pieces of all users. Those of one user may stand in several places."""
    number_of: dict[str, int] = {}
    users, seeds, keys = list[History](), list[int](), list[int]()
    owners, places, bits, is_new = list[int](), list[int](), list[int](), list[bool]()
    seen = list[tuple[int, int, int, Bits]]()
    for each in taught:
        number = number_of.setdefault(each.user, len(users))
        if number == len(users):
            users.append(each.history)
            seeds.append(each.seed)
            keys.append(_key_of(each.user))
        owners += [number] * len(each.places)
        places += each.places
        bits += each.bits
        is_new += each.is_new
        if each.seen is not None:
            seen.append((number, each.places[0], *each.seen))
    return Pieces(
        users,
        seeds,
        keys,
        np.array(owners, np.int64),
        np.array(places, np.int64),
        np.array(bits, np.uint32),
        np.array(is_new, np.bool_),
        seen,
    )


@lru_cache(maxsize=1 << 16)
def _key_of(user: str) -> int:
    # Not `wire.hashing`: this module needs nothing but torch and NumPy.
    return int.from_bytes(blake2b(user.encode(), digest_size=8).digest(), "little", signed=True)


def merge(pieces: Pieces) -> tuple[Int64, Int64, Bits, Bools]:
    """Merge the pieces of each interaction: owners, places, kinds, and whether it is new, sorted by owner and place."""
    order = np.lexsort((pieces.place_P, pieces.owner_P))
    owner, place = pieces.owner_P[order], pieces.place_P[order]
    differs = np.ones(len(order), np.bool_)
    differs[1:] = (owner[1:] != owner[:-1]) | (place[1:] != place[:-1])
    starts = np.flatnonzero(differs)
    bits = np.bitwise_or.reduceat(pieces.bits_P[order], starts)
    return owner[starts], place[starts], bits, np.logical_or.reduceat(pieces.is_new_P[order], starts)
