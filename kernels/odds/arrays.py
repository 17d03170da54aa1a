"""The arrays of the odds: counts by row, and the weights of the log-odds that are computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bytes = NDArray[np.uint8]

COUNTED = (
    "item", "item less smoothed", "item's last 10", "item's last 50", "user", "user's last 2", "user's last 5",
    "user's last 20", "user with this item",
)  # fmt: skip
"""The log-odds of an item and its user, in order. After them come, for the domain and each feature of the item, those
of the user with items that share it (`ALIKE_DECAYS`); then those of the attributes (domain, features, pause), of the
pairs of domain and features, then the network's."""
ITEM = 0
ITEM_STRENGTH, BOLD_STRENGTH, RECENT_STRENGTH, USER_STRENGTH, LATE_STRENGTH, OWN_STRENGTH = (
    30.0, 3.0, 2.0, 5.0, 2.0, 1.0,
)  # fmt: skip
ALIKE_STRENGTH, ATTRIBUTE_STRENGTH, PAIR_STRENGTH = 3.0, 20.0, 3.0
"""How many sightings the prior of each rate is worth. The prior is the overall rate; for an item's recent rates, the
item's; for the user with this item or similar ones, the user's; for a pair, what its two odds give if independent."""
LEAST_COME = 1.0
"""An item's prior is worth more than `ITEM_STRENGTH` where that has fewer of the rarer outcome than this: otherwise a
single one of a kind that comes one time in a thousand would multiply the item's odds by thirty."""
RECENT_DECAYS = (0.9, 0.98)
"""By how much an item's earlier sightings are discounted with each new one."""
LATE_DECAYS = (0.5, 0.8, 0.95)
"""The same for a user's interactions."""
ALIKE_DECAYS = (1.0, 0.98, 0.9)
"""The same for a user's interactions with similar items."""
NUM_BLOCKS = 1 + len(RECENT_DECAYS)
"""Blocks of an item's counts: undiscounted, and one for each decay."""
HIDDEN, NUM_CONFIDENCES = 16, 3
"""Width of the hidden layer, and its inputs besides the log-odds: how much is known of the item, the user, and both."""
NUM_PAUSES = 32
"""Rows of pauses: 0 for a user's first interaction, then one for each doubling of the seconds since the last one."""
MOST_PAIRED = 6
"""Of domain and features, so many are paired, the first ones: the number of pairs grows with the square."""
PAIR_ROWS = 1 << 16
"""Rows of the pairs' table, which pairs are hashed to: a power of 2."""
MOST_COUNTED = 1 << 22
"""Of interactions in a row, whose counts are then all halved: a float32 no longer grows by one from 2^24 on."""
FIRST_GAIN_SQUARE, FIRST_SQUARE = 10.0, 1.0
"""Initial Adagrad states: of the log-odds' weights, and of the hidden layer."""
LEAST_RATE = 1e-6
ATTRIBUTE_TABLES = ("domain", "feature", "pause")
_SPREAD, _MIX, _WORD = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, (1 << 64) - 1


@dataclass(slots=True, eq=False)
class OddsArrays:
    """Counts and weights. A count has C = 1 + K columns: interactions, and how many of them had each of K kinds.

    - ``item_VC`` (V, `NUM_BLOCKS` x C), ``domain_VC`` and ``feature_VC`` (·, C): by row of the items', domains' and
      features' tables; row 0 is everything that has no row. ``pause_VC`` (`NUM_PAUSES`, C): by length of the pause.
      ``pair_VC`` (`PAIR_ROWS`, C): by hash of two attributes (`pair_rows`). ``total_C`` float64: of all interactions.
    - ``gain_FK``: for each kind, the weights of the F log-odds (`COUNTED`, `ALIKE_DECAYS` of each similarity,
      attributes, pairs, network) and last a bias. ``hidden_JH``: from the F x K log-odds, `NUM_CONFIDENCES` and a
      constant to the hidden layer; ``out_HK``: from there to the kinds. ``*_square_*``: their Adagrad states.
    - ``norm_2I``: means and variances of the F x K log-odds. ``clock`` (1 + 2K,) float64: interactions so far, then the
      caller's counts of kinds that came at once, and late.
    - ``attributes`` (3,): how many domains and how many features an event has, and by how many of both items are
      compared. ``*_dirty_V`` uint8: 0xFF in rows that changed; each reader clears its own bit.
    """

    item_VC: Float32
    domain_VC: Float32
    feature_VC: Float32
    pause_VC: Float32
    pair_VC: Float32
    total_C: Float64
    gain_FK: Float32
    gain_square_FK: Float32
    hidden_JH: Float32
    hidden_square_JH: Float32
    out_HK: Float32
    out_square_HK: Float32
    norm_2I: Float32
    clock: Float64
    item_dirty_V: Bytes
    domain_dirty_V: Bytes
    feature_dirty_V: Bytes
    pair_dirty_V: Bytes
    attributes: Int64

    @staticmethod
    def empty(
        num_kinds: int, num_domains: int, num_features: int, num_alike: int = 0, capacity: int = 64
    ) -> OddsArrays:
        """No counts; an item's own log-odds have weight 1, all others 0."""
        columns, num_attributes = 1 + num_kinds, num_domains + num_features + 1
        num_pairs = num_pairs_of(num_attributes)
        num_rates = len(COUNTED) + len(ALIKE_DECAYS) * num_alike + num_attributes + num_pairs + 1
        num_logs = num_rates * num_kinds
        gain = np.zeros((num_rates + 1, num_kinds), np.float32)
        gain[ITEM] = 1.0
        num_seen = num_logs + NUM_CONFIDENCES + 1
        rng = np.random.Generator(np.random.Philox(key=2))
        hidden = (rng.standard_normal((num_seen, HIDDEN)) / np.sqrt(num_seen)).astype(np.float32)
        pair_rows = PAIR_ROWS if num_pairs else 1
        out = np.zeros((HIDDEN, num_kinds), np.float32)
        norm = np.repeat(np.array([0, 1], np.float32)[:, None], num_logs, axis=1)
        return OddsArrays(
            item_VC=np.zeros((capacity, NUM_BLOCKS * columns), np.float32),
            domain_VC=np.zeros((capacity, columns), np.float32),
            feature_VC=np.zeros((capacity, columns), np.float32),
            pause_VC=np.zeros((NUM_PAUSES, columns), np.float32),
            pair_VC=np.zeros((pair_rows, columns), np.float32),
            total_C=np.zeros(columns),
            gain_FK=gain,
            gain_square_FK=np.full_like(gain, FIRST_GAIN_SQUARE),
            hidden_JH=hidden,
            hidden_square_JH=np.full_like(hidden, FIRST_SQUARE),
            out_HK=out,
            out_square_HK=np.full_like(out, FIRST_SQUARE),
            norm_2I=norm,
            clock=np.zeros(1 + 2 * num_kinds),
            item_dirty_V=np.zeros(capacity, np.uint8),
            domain_dirty_V=np.zeros(capacity, np.uint8),
            feature_dirty_V=np.zeros(capacity, np.uint8),
            pair_dirty_V=np.zeros(pair_rows, np.uint8),
            attributes=np.array([num_domains, num_features, num_alike]),
        )

    @property
    def num_kinds(self) -> int:
        """K."""
        return len(self.total_C) - 1

    @property
    def num_domains(self) -> int:
        """How many of an event's attributes are rows of the domains' table."""
        return int(self.attributes[0])

    @property
    def num_attributes(self) -> int:
        """A: domains and features of an event, and its pause."""
        return int(self.attributes[:2].sum()) + 1

    @property
    def num_alike(self) -> int:
        """L: by how many attributes items are compared."""
        return int(self.attributes[2])

    @property
    def num_kept(self) -> int:
        """How many numbers are kept of an interaction (`OddsKept`)."""
        return int(self.norm_2I.shape[1]) + NUM_CONFIDENCES + self.num_kinds

    def copy(self) -> OddsArrays:
        """A copy that shares nothing."""
        return OddsArrays(*(getattr(self, each.name).copy() for each in fields(self)))


@dataclass(slots=True, eq=False)
class OddsKept:
    """A ring of the newest P interactions, with the inputs that they were predicted from when they were new.

    ``log_PI``: the log-odds, then the `NUM_CONFIDENCES`, then the K probabilities at the time when the weights learned
    the interaction. ``bits_P``: the kinds that have come by now. ``count_2`` int64: how many interactions there were,
    and how many of them the weights have learned, oldest first. ``dirty_P``: dirty marks, as of rows.
    """

    log_PI: Float32
    bits_P: NDArray[np.uint32]
    count_2: Int64
    dirty_P: Bytes

    @staticmethod
    def empty(odds: OddsArrays, most: int) -> OddsKept:
        """Room for the newest ``most`` interactions."""
        log_PI = np.zeros((most, odds.num_kept), np.float32)
        return OddsKept(log_PI, np.zeros(most, np.uint32), np.zeros(2, np.int64), np.zeros(most, np.uint8))

    @property
    def num_used(self) -> int:
        """Places in use, from the first on."""
        return min(len(self.bits_P), int(self.count_2[0]))

    def copy(self) -> OddsKept:
        """A copy that shares nothing."""
        return OddsKept(*(getattr(self, each.name).copy() for each in fields(self)))


@dataclass(slots=True, eq=False)
class OddsEvents:
    """R events, each a new interaction or feedback to an earlier one, and what came before it in the user's sequence.

    ``row_R``: rows of the items; ``item_R``: their keys. ``attribute_RA``: rows of domain, features and pause.
    ``network_RK``: the network's logits. ``bits_R``: the kinds that the event brings; ``is_new_R``: 1 for a new
    interaction, 0 for feedback. ``order_R``: the events in the order in which they happened. The user of event r had
    met the items ``past_item_n[past_begin_R[r]:past_end_R[r]]``, oldest first, with the kinds ``past_bits_n``.
    ``alike_RL``: keys of the item's domain and features, 0 for none; ``past_alike_nL``: those of the earlier items.
    ``kept_R``: for feedback, the interaction's place in `OddsKept`, -1 if it is gone.
    """

    row_R: Int32
    item_R: Int64
    attribute_RA: Int32
    network_RK: Float32
    bits_R: NDArray[np.uint32]
    is_new_R: Bytes
    order_R: Int64
    past_item_n: Int64
    past_bits_n: NDArray[np.uint32]
    past_begin_R: Int64
    past_end_R: Int64
    alike_RL: Int64
    past_alike_nL: Int64
    kept_R: Int32

    def __len__(self) -> int:
        return len(self.row_R)


@dataclass(frozen=True, slots=True)
class OddsRules:
    """How the weights are learned: Adagrad's learning rates, and the decay of its state with each event.

    ``horizon``: the weights learn an interaction, with the kinds that it has by then, once this many newer ones have
    arrived; 0: at once.
    """

    rate: float = 0.03
    hidden_rate: float = 0.03
    decay: float = 0.99999
    horizon: int = 0


def num_pairs_of(num_attributes: int) -> int:
    """How many pairs of attributes there are; pauses are not paired."""
    return len(pairs_of(num_attributes))


def pairs_of(num_attributes: int) -> list[tuple[int, int]]:
    """The places of each pair among the attributes, in order."""
    return list(combinations(range(min(num_attributes - 1, MOST_PAIRED)), 2))


def pair_rows(row_A: Sequence[int], num_rows: int) -> list[int]:
    """For each pair of an event's attributes, which have the rows ``row_A``, one of the ``num_rows`` of
    `OddsArrays.pair_VC`."""
    found = []
    for number, (a, b) in enumerate(pairs_of(len(row_A))):
        key = _mixed((number + 1) * _SPREAD + row_A[a])
        found.append(_mixed(key + row_A[b]) >> 32 & num_rows - 1)
    return found


def _mixed(key: int) -> int:
    key &= _WORD
    return (key ^ key >> 32) * _MIX & _WORD


def by_table(odds: OddsArrays, events: OddsEvents) -> list[Int32]:
    """The attributes' rows (R, ·) in each of `ATTRIBUTE_TABLES`."""
    num, attribute_RA = odds.num_domains, events.attribute_RA
    return [attribute_RA[:, :num], attribute_RA[:, num:-1], attribute_RA[:, -1:]]


def check_ranges(odds: OddsArrays, events: OddsEvents, kept: OddsKept | None = None) -> None:
    """Raise IndexError for a row outside of its table, ValueError for a place outside of the events, of the past or of
    what is kept."""
    num, past = len(events), len(events.past_item_n)
    if not num:
        return
    _check_rows("row_R", events.row_R, len(odds.item_VC))
    for name, rows_RA in zip(ATTRIBUTE_TABLES, by_table(odds, events), strict=True):
        _check_rows("attribute_RA", rows_RA, len(getattr(odds, f"{name}_VC")))
    if not (events.order_R.min() >= 0 and events.order_R.max() < num):
        raise ValueError(f"order_R: expected each of 0 to {num - 1} once, got {events.order_R.min()} to "
                         f"{events.order_R.max()}")  # fmt: skip
    begin, end = events.past_begin_R, events.past_end_R
    if not (begin.min() >= 0 and (begin <= end).all() and end.max() <= past):
        raise ValueError(f"past_begin_R, past_end_R: expected ranges within {past} interactions")
    if kept is not None:
        place_R = events.kept_R[events.is_new_R == 0]
        if place_R.size and not (place_R.min() >= -1 and place_R.max() < len(kept.bits_P)):
            raise ValueError(f"kept_R: expected -1 or one of {len(kept.bits_P)} places, got {place_R.min()} to "
                             f"{place_R.max()}")  # fmt: skip


def _check_rows(name: str, rows: Int32, num: int) -> None:
    if rows.size and not (rows.min() >= 0 and rows.max() < num):
        raise IndexError(f"{name}: expected rows 0 to {num - 1}, got {rows.min()} to {rows.max()}; grow it first")
