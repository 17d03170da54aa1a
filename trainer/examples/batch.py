"""A jagged batch: what the examples of one step teach, one sequence per user, without padding.

A step folds its examples into the users' histories, in order, and lays out one sequence for each user with a piece
(`trainer.examples.pieces`): up to ``max_context`` interactions before the first piece, and all from there to the last.
Attention is causal, so a target sees nothing of what comes after it. Several pieces of one interaction in a step are
one target.

Shapes: B users, n interactions in all, T = 2n tokens (item, action, item, action, …), R targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kernels.windows import join_windows, unpack_kinds
from model.config import ModelConfig
from model.kinds import becomes_chosen
from model.tokens import propensities, query_times, states
from trainer.examples.pieces import Choose, Pieces, merge, taught_at_once
from wire.example import Lesson
from wire.history import Histories, History

Int64 = NDArray[np.int64]
Bits = NDArray[np.uint32]
Bools = NDArray[np.bool_]
COLUMNS = ("item_n", "bits_n", "time_ms_n", "domain_n", "value_n", "feature_nF", "state_nU", "propensity_n")
"""Those that have a row for each interaction."""
_SPREAD = np.int64(0x1E3779B97F4A7C15)
"""Odd, so that distinct users' keys stay distinct when multiplied by it, and far apart."""


@dataclass(slots=True, eq=False)  # frozen would take several us more to make
class JaggedBatch:
    """Columns of the interactions, and where the targets are.

    ``starts_B1`` (B+1,) int64: user b has interactions ``starts_B1[b]:starts_B1[b+1]``. ``target_R`` (R,) int64: index
    of each target among the n, ascending; ``owner_R`` (R,) int64: its user. ``previous_R`` (R,) int64: index of the
    interaction before it in the same sequence, or -1. ``age_R`` (R,) int64: its place in the user's lifetime.
    ``is_new_R``: whether it is new, or an earlier one that got feedback. ``learned_bits_R``: the kinds that the step
    brings; ``previous_bits_R``: those that it had before. ``is_wanted_R``: whether the step makes it a choice
    (`model.kinds`), which is what retrieval predicts. ``seed_B``: a number derived from the user's first example in the
    step. ``user_key_B``: the hash of each user's name. ``user_feature_BF``: the user's latest features. ``state_nU``
    (n, U): those as of each interaction (after `trainer.examples.changes.with_changes`, of the changes alone); no
    columns without ``model.user_tokens``. ``propensity_n``: the probability with which the item was shown, NaN if
    unknown.
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
    owner_R: Int64
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
    _choice_S: Int64 | None = field(default=None, init=False, repr=False)

    @property
    def owner_n(self) -> Int64:
        """(n,) each interaction's user."""
        return np.repeat(np.arange(len(self.starts_B1) - 1), np.diff(self.starts_B1))

    @property
    def choice_S(self) -> Int64:  # noqa: N802  (shape suffix)
        """(S,) which targets the step makes choices."""
        if self._choice_S is None:
            self._choice_S = self.is_wanted_R.nonzero()[0]
        return self._choice_S

    @property
    def key_R(self) -> Int64:  # noqa: N802  (shape suffix)
        """(R,) identifies each target's interaction, in every step that has a piece of it."""
        return self.user_key_B[self.owner_R] * _SPREAD + self.age_R

    @property
    def query_time_n(self) -> Int64:
        """(n,) when the next item was asked for: the next interaction's time; for the last one, its own."""
        return query_times(self.time_ms_n, self.starts_B1)

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
        has_other = self.user_feature_BF.shape[1] and not self.state_nU.shape[1]
        return self.user_feature_BF[self.owner_n] if has_other else self.state_nU

    @property
    def kinds_nK(self) -> NDArray[np.float32]:  # noqa: N802  (shape suffix)
        """(n, K) the kinds that each interaction has, as far as is known."""
        return unpack_kinds(self.bits_n, self.num_kinds)

    @property
    def learned_RK(self) -> NDArray[np.float32]:  # noqa: N802  (shape suffix)
        """(R, K) the kinds that the step brings for each target."""
        return unpack_kinds(self.learned_bits_R, self.num_kinds)


def build_batch(
    examples: Sequence[Lesson], histories: Histories, config: ModelConfig, choose: Choose = taught_at_once
) -> JaggedBatch:
    """Fold the examples into ``histories``, in the order given, and lay out what they teach (``choose``)."""
    touched = histories.gather_all(examples)
    pieces = choose(examples, touched, histories)
    batch = _lay_out(pieces, config) if pieces.histories else nothing_learned(config)
    for history in touched:
        if history.end > history.full_at:
            histories.settle(history)
    return batch


def _lay_out(pieces: Pieces, config: ModelConfig) -> JaggedBatch:
    owner_R, place_R, learned_R, is_new_R = merge(pieces)
    histories = pieces.histories
    first_B1 = np.searchsorted(owner_R, np.arange(len(histories) + 1))
    start_B = np.array([history.start for history in histories], np.int64)
    end_B = np.array([history.end for history in histories], np.int64)
    if ((place_R < start_B[owner_R]) | (place_R >= end_B[owner_R])).any():
        kept = pieces.still_there()
        return _lay_out(kept, config) if kept.histories else nothing_learned(config)
    first_B = np.maximum(place_R[first_B1[:-1]] - config.max_context, start_B)
    length_B = np.maximum(np.minimum(place_R[first_B1[1:] - 1] + 1, end_B) - first_B, 0)
    address_B = np.array([history.address for history in histories], np.int64)
    layout = histories[0].buffer.dtype
    columns = join_windows(address_B + (first_B - start_B) * layout.itemsize, length_B, layout["features"].shape[0])
    starts_B1 = np.zeros(len(histories) + 1, np.int64)
    np.cumsum(length_B, out=starts_B1[1:])
    target_R = starts_B1[owner_R] + place_R - first_B[owner_R]
    bits_n = columns.bits_n
    _put_seen(bits_n, pieces.seen, starts_B1[:-1], first_B)
    previous_bits_R = bits_n[target_R] & ~learned_R
    batch = JaggedBatch(
        starts_B1=starts_B1,
        item_n=columns.item_n,
        bits_n=bits_n,
        time_ms_n=columns.time_ms_n,
        domain_n=columns.domain_n,
        value_n=columns.value_n,
        feature_nF=np.ascontiguousarray(columns.feature_nC[:, : config.num_features]),
        user_feature_BF=_user_features(histories),
        state_nU=states(columns.feature_nC, config),
        propensity_n=propensities(columns.feature_nC, config),
        owner_R=owner_R,
        target_R=target_R,
        previous_R=previous(target_R, starts_B1[owner_R]),
        age_R=place_R,
        is_new_R=is_new_R,
        learned_bits_R=learned_R,
        previous_bits_R=previous_bits_R,
        is_wanted_R=becomes_chosen(previous_bits_R, learned_R, config),
        seed_B=np.array(pieces.seeds, np.int64),
        user_key_B=np.array(pieces.user_keys, np.int64),
        num_kinds=len(config.kinds),
    )
    # Examples that were lost before they were read (`trainer.on_gap`) leave rows without items.
    return batch if not columns.num_absent else take_interactions(batch, np.flatnonzero(batch.item_n))


def _user_features(histories: Sequence[History]) -> Int64:
    num = len(histories[0].user_features)
    joined = [history.user_features for history in histories] if num else [np.zeros(0, np.int64)]
    return np.concatenate(joined).reshape(len(histories), num)


def _put_seen(bits_n: Bits, seen: list[tuple[int, int, int, Bits]], start_B: Int64, first_B: Int64) -> None:
    """Give the interactions before each of these pieces the kinds that were known when it was new; those that several
    pieces have before them, the kinds that were known when the first was new."""
    done: dict[int, int] = {}
    for owner, place, first, bits in sorted(seen, key=lambda each: each[:2]):
        begin = max(first, int(first_B[owner]), done.get(owner, 0))
        if begin < place:
            at = int(start_B[owner] - first_B[owner])
            bits_n[at + begin : at + place] = bits[begin - first : place - first]
        done[owner] = place


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
        owner_R=none,
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


def take_interactions(batch: JaggedBatch, kept: Int64) -> JaggedBatch:
    """The batch with only the interactions at ``kept`` (ascending, every target among them)."""
    owner = batch.owner_n[kept]
    starts_B1 = np.searchsorted(owner, np.arange(len(batch.starts_B1)))
    target_R = np.searchsorted(kept, batch.target_R, side="right") - 1
    columns = {name: getattr(batch, name)[kept] for name in COLUMNS}
    return replace(
        batch,
        starts_B1=starts_B1,
        target_R=target_R,
        previous_R=previous(target_R, starts_B1[batch.owner_R]),
        **columns,
    )


def previous(target_R: Int64, start_R: Int64) -> Int64:
    """(R,) the interaction before each target, -1 where its user's begin with it (``start_R``)."""
    return np.where(target_R > start_R, target_R - 1, -1)
