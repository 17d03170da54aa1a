"""A jagged batch: what the examples of one step teach, one sequence per user, without padding.

Examples bring pieces: a new interaction with its kinds, or later kinds of an earlier one. A step folds its examples
into the users' histories, in order, and lays out one sequence for each user with a piece: up to ``max_context``
interactions before the first piece, and all from there to the last. Attention is causal, so a target sees nothing of
what comes after it. Several pieces of one interaction in a step are one target.

Shapes: B users, n interactions in all, T = 2n tokens (item, action, item, action, …), R targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
from model.kinds import becomes_chosen
from model.tokens import propensities, query_times, states, unpack_kinds
from wire.example import Example
from wire.history import Histories, History, Rows

Int64 = NDArray[np.int64]
Bits = NDArray[np.uint32]
Bools = NDArray[np.bool_]
_COLUMNS = ("item_n", "bits_n", "domain_n", "value_n", "feature_nF", "state_nU", "propensity_n")
_SPREAD = np.int64(0x1E3779B97F4A7C15)
"""Odd, so that distinct users' keys stay distinct when multiplied by it, and far apart."""


@dataclass(frozen=True, slots=True, eq=False)
class JaggedBatch:
    """Columns of the interactions, and where the targets are.

    ``starts_B1`` (B+1,) int64: user b has interactions ``starts_B1[b]:starts_B1[b+1]``. ``target_R`` (R,) int64: index
    of each target among the n, ascending. ``previous_R`` (R,) int64: index of the interaction before it in the same
    sequence, or -1. ``age_R`` (R,) int64: its place in the user's lifetime. ``is_new_R``: whether it is new, or an
    earlier one that got feedback. ``learned_bits_R``: the kinds that the step brings; ``previous_bits_R``: those that
    it had before. ``is_wanted_R``: whether the step makes it a choice (`model.kinds`), which is what retrieval
    predicts. ``query_time_n``: when the next item was asked for (the next interaction's time; for the last one, its
    own). ``seed_B``: a number derived from the user's first example in the step. ``user_key_B``: the hash of each
    user's name. ``user_feature_BF``: the user's latest features. ``state_nU`` (n, U): those as of each interaction
    (after `trainer.changes.with_changes`, of the changes alone); no columns without ``model.user_tokens``.
    ``propensity_n``: with which the item was shown, NaN if unknown.
    """

    starts_B1: Int64
    item_n: Int64
    bits_n: Bits
    time_ms_n: Int64
    domain_n: Int64
    value_n: NDArray[np.float32]
    feature_nF: Int64
    user_feature_BF: Int64
    state_nU: Int64
    propensity_n: NDArray[np.float64]
    owner_n: Int64
    query_time_n: Int64
    target_R: Int64
    previous_R: Int64
    age_R: Int64
    is_new_R: Bools
    learned_bits_R: Bits
    previous_bits_R: Bits
    is_wanted_R: Bools
    seed_B: Int64
    user_key_B: Int64
    num_kinds: int

    @property
    def key_R(self) -> Int64:  # noqa: N802  (shape suffix)
        """(R,) identifies each target's interaction, in every step that has a piece of it."""
        return self.user_key_B[self.owner_n[self.target_R]] * _SPREAD + self.age_R

    @property
    def num_targets(self) -> int:
        """R."""
        return len(self.target_R)

    @property
    def num_tokens(self) -> int:
        """T."""
        return 2 * len(self.item_n)

    @property
    def side_feature_nF(self) -> Int64:  # noqa: N802  (shape suffix)
        """(n, F) the user features that are added to each interaction's item token."""
        return self.state_nU if self.state_nU.shape[1] else self.user_feature_BF[self.owner_n]

    @property
    def kinds_nK(self) -> NDArray[np.float32]:  # noqa: N802  (shape suffix)
        """(n, K) the kinds that each interaction has, as far as is known."""
        return unpack_kinds(self.bits_n, self.num_kinds)

    @property
    def learned_RK(self) -> NDArray[np.float32]:  # noqa: N802  (shape suffix)
        """(R, K) the kinds that the step brings for each target."""
        return unpack_kinds(self.learned_bits_R, self.num_kinds)


@dataclass(slots=True, eq=False)
class _Pieces:
    """The content of the step's examples: for each user a history, a seed and a key; for each piece its user, its place
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


Choose = Callable[[Sequence[Example], Sequence[History], Histories], list[Taught]]
"""What a step teaches, from its examples, the histories that they were folded into, and all histories."""


def taught_at_once(examples: Sequence[Example], touched: Sequence[History], histories: Histories) -> list[Taught]:
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


def _taught_by(example: Example, history: History) -> Taught:
    first, num_new, held = example.first_index, example.num_new, example.interactions.action_bits
    places: list[int] = (first + example.feedback_index).tolist() if example.num_feedback else []
    bits: list[int] = example.feedback_bits.tolist() if example.num_feedback else []
    is_new = [False] * len(places) + [True] * num_new
    places += range(first + len(held) - num_new, first + len(held))
    bits += held[len(held) - num_new :].tolist()
    return Taught(example.user, history, seed_of(example.partition, example.number), places, bits, is_new)


def build_batch(
    examples: Sequence[Example], histories: Histories, config: ModelConfig, choose: Choose = taught_at_once
) -> JaggedBatch:
    """Fold the examples into ``histories``, in the order given, and lay out what they teach (``choose``)."""
    touched = [histories.gather(example) for example in examples]
    taught = choose(examples, touched, histories)
    batch = _lay_out(_pieces(taught), config) if taught else None
    for history in touched:
        histories.settle(history)
    return batch if batch is not None else nothing_learned(config)


def _pieces(taught: Sequence[Taught]) -> _Pieces:
    number_of: dict[str, int] = {}
    users, seeds, keys = list[History](), list[int](), list[int]()
    owners, places, bits, is_new = list[int](), list[int](), list[int](), list[bool]()
    seen = list[tuple[int, int, int, Bits]]()
    for each in taught:
        number = number_of.setdefault(each.user, len(users))
        if number == len(users):
            users.append(each.history)
            seeds.append(each.seed)
            # Not `wire.hashing`: this module needs nothing but torch and NumPy.
            keys.append(int.from_bytes(blake2b(each.user.encode(), digest_size=8).digest(), "little", signed=True))
        owners += [number] * len(each.places)
        places += each.places
        bits += each.bits
        is_new += each.is_new
        if each.seen is not None:
            seen.append((number, each.places[0], *each.seen))
    return _Pieces(
        users,
        seeds,
        keys,
        np.array(owners, np.int64),
        np.array(places, np.int64),
        np.array(bits, np.uint32),
        np.array(is_new, np.bool_),
        seen,
    )


def _merge(pieces: _Pieces) -> tuple[Int64, Int64, Bits, Bools]:
    """Merge the pieces of each interaction: owners, places, kinds, and whether it is new, sorted by owner and place."""
    order = np.lexsort((pieces.place_P, pieces.owner_P))
    owner, place = pieces.owner_P[order], pieces.place_P[order]
    differs = np.ones(len(order), np.bool_)
    differs[1:] = (owner[1:] != owner[:-1]) | (place[1:] != place[:-1])
    starts = np.flatnonzero(differs)
    bits = np.bitwise_or.reduceat(pieces.bits_P[order], starts)
    return owner[starts], place[starts], bits, np.logical_or.reduceat(pieces.is_new_P[order], starts)


def _lay_out(pieces: _Pieces, config: ModelConfig) -> JaggedBatch:
    owner_R, place_R, learned_R, is_new_R = _merge(pieces)
    first_B1 = np.append(np.flatnonzero(np.append(True, np.diff(owner_R) != 0)), len(owner_R))
    windows = [
        history.window(int(place_R[first]) - config.max_context, int(place_R[stop - 1]) + 1)
        for history, first, stop in zip(pieces.histories, first_B1[:-1], first_B1[1:], strict=True)
    ]
    rows_n = _joined([rows for _, rows in windows])
    length_B = np.array([len(rows) for _, rows in windows], np.int64)
    starts_B1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(length_B)])
    first_B = np.array([first for first, _ in windows], np.int64)
    target_R = starts_B1[owner_R] + place_R - first_B[owner_R]
    bits_n, time_ms_n = np.array(rows_n["bits"]), np.ascontiguousarray(rows_n["time"])
    _put_seen(bits_n, pieces.seen, starts_B1[:-1], first_B)
    previous_bits_R = bits_n[target_R] & ~learned_R
    batch = JaggedBatch(
        starts_B1=starts_B1,
        item_n=np.ascontiguousarray(rows_n["item"]),
        bits_n=bits_n,
        time_ms_n=time_ms_n,
        domain_n=np.ascontiguousarray(rows_n["domain"]),
        value_n=np.ascontiguousarray(rows_n["value"]),
        feature_nF=np.ascontiguousarray(rows_n["features"][:, : config.num_features]),
        user_feature_BF=np.stack([history.user_features for history in pieces.histories]),
        state_nU=states(rows_n["features"], config),
        propensity_n=propensities(rows_n["features"], config),
        owner_n=np.repeat(np.arange(len(windows)), length_B),
        query_time_n=query_times(time_ms_n, starts_B1),
        target_R=target_R,
        previous_R=np.where(target_R > starts_B1[owner_R], target_R - 1, -1),
        age_R=place_R,
        is_new_R=is_new_R,
        learned_bits_R=learned_R,
        previous_bits_R=previous_bits_R,
        is_wanted_R=becomes_chosen(previous_bits_R, learned_R, config),
        seed_B=np.array(pieces.seeds, np.int64),
        user_key_B=np.array(pieces.user_keys, np.int64),
        num_kinds=len(config.kinds),
    )
    present_n = batch.item_n != 0
    # Examples that were lost before they were read (`trainer.on_gap`) leave rows without items.
    return batch if present_n.all() else take_interactions(batch, np.flatnonzero(present_n))


def _put_seen(bits_n: Bits, seen: list[tuple[int, int, int, Bits]], start_B: Int64, first_B: Int64) -> None:
    """Before each of these pieces, put the kinds that were known when it was new; of what several have before them, the
    first one's."""
    done: dict[int, int] = {}
    for owner, place, first, bits in sorted(seen, key=lambda each: each[:2]):
        begin = max(first, int(first_B[owner]), done.get(owner, 0))
        if begin < place:
            at = int(start_B[owner] - first_B[owner])
            bits_n[at + begin : at + place] = bits[begin - first : place - first]
        done[owner] = place


def _joined(parts: list[Rows]) -> Rows:
    """Rows of one type, concatenated as plain bytes: otherwise NumPy compares the fields of each part's type."""
    layout = parts[0].dtype
    return np.concatenate([part.view(f"V{layout.itemsize}") for part in parts]).view(layout)


def nothing_learned(config: ModelConfig) -> JaggedBatch:
    """The batch without users."""
    none, no_bits, no_bools = np.zeros(0, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.bool_)
    return JaggedBatch(
        starts_B1=np.zeros(1, np.int64),
        item_n=none,
        bits_n=no_bits,
        time_ms_n=none,
        domain_n=none,
        value_n=np.zeros(0, np.float32),
        feature_nF=np.zeros((0, config.num_features), np.int64),
        user_feature_BF=np.zeros((0, config.num_user_features), np.int64),
        state_nU=np.zeros((0, config.num_user_features * config.user_tokens), np.int64),
        propensity_n=np.zeros(0),
        owner_n=none,
        query_time_n=none,
        target_R=none,
        previous_R=none,
        age_R=none,
        is_new_R=no_bools,
        learned_bits_R=no_bits,
        previous_bits_R=no_bits,
        is_wanted_R=no_bools,
        seed_B=none,
        user_key_B=none,
        num_kinds=len(config.kinds),
    )


def shorten(batch: JaggedBatch, max_context: int) -> JaggedBatch:
    """The batch with at most ``max_context`` interactions before each user's first target."""
    first_target_B = batch.target_R[np.searchsorted(batch.target_R, batch.starts_B1[:-1])]
    first_n = np.maximum(batch.starts_B1[:-1], first_target_B - max_context)
    kept = np.flatnonzero(np.arange(len(batch.item_n)) >= first_n[batch.owner_n])
    return batch if len(kept) == len(batch.item_n) else take_interactions(batch, kept)


def take_interactions(batch: JaggedBatch, kept: Int64) -> JaggedBatch:
    """The batch with only the interactions at ``kept`` (ascending, every target among them)."""
    new_index_n = np.full(len(batch.item_n), -1, np.int64)
    new_index_n[kept] = np.arange(len(kept))
    owner = batch.owner_n[kept]
    starts_B1 = np.searchsorted(owner, np.arange(len(batch.starts_B1)))
    target_R = new_index_n[batch.target_R]
    time_ms = batch.time_ms_n[kept]
    columns = {name: getattr(batch, name)[kept] for name in _COLUMNS}
    return replace(
        batch,
        starts_B1=starts_B1,
        time_ms_n=time_ms,
        owner_n=owner,
        query_time_n=query_times(time_ms, starts_B1),
        target_R=target_R,
        previous_R=np.where(target_R > starts_B1[owner[target_R]], target_R - 1, -1),
        **columns,
    )
