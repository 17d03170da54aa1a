"""How often each kind occurs with an item, a user, a domain and a feature: where ranking starts.

An item's rate is known after a few sightings, long before gradients have found it. So its log-odds, smoothed towards
those of all items, are part of each of the network's logits, beside those of the user's own history. The final
probability of a kind combines more counts, and the network's logit is one input among them: `kernels.odds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.beside import Beside
from kernels.odds import OddsArrays, OddsEvents, OddsRules, odds_begin, odds_predict
from kernels.odds.arrays import LEAST_RATE, by_table
from kernels.outcomes import count_came, smoothed_rates
from model.arrivals import MOST_REMEMBERED, Arrivals
from model.config import ModelConfig
from model.dirty import CHANGED, UNPUBLISHED, clear, is_dirty
from model.growing import GrowingColumns
from model.kept import KeptInputs
from model.upgrade import arrivals_of, upgraded_rates
from wire.errors import VersionError

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
ITEM_STRENGTH, USER_STRENGTH = 10.0, 5.0
"""How many sightings the rate over all items counts for when it smooths the rate of an item, or of a user."""
MOST_LATE, DELAY_DECAY = 0.05, 0.9999
"""A kind counts as late if more than this share of it came late, in about the last ten thousand events."""
LEAST_OUTCOMES = 50
"""Nothing is learned before so many outcomes have differed."""
NUM_PRIORS = 2
TABLES = ("item", "domain", "feature", "pair")
_WEIGHTS = ("pause_VC", "total_C", "gain_FK", "hidden_JH", "out_HK", "norm_2I", "clock")
_HOW_SURELY = ("gain_square_FK", "hidden_square_JH", "out_square_HK")


class Rates:
    """Counts by row of the tables of items, domains and features, and the learned weights of the odds.

    Row 0 collects everything without a row. Where an item's row was evicted, or came after its first interactions, the
    late kinds of these are counted in another row than they are: at most as often as that row's interactions, so a row
    0 without any stays empty. Deterministic in the order of calls; one writer.
    """

    def __init__(self, config: ModelConfig, *, backend: str = "auto", most_kept: int | None = None) -> None:
        """``most_kept``: of how many interactions the inputs are kept, as many as fit if None; who does not learn needs
        none."""
        self._backend = "reference" if backend == "reference" else "auto"
        num_domains, num_features = int(config.use_domain), config.num_features
        self._begun: Callable[[], None] | None = None
        self._here = OddsArrays.empty(
            len(config.kinds), num_domains, num_features + config.num_user_features, num_domains + num_features
        )
        self._kept = KeptInputs(self._here, most_kept)
        self.arrivals = Arrivals(max(MOST_REMEMBERED, len(self._kept)))
        self._columns = GrowingColumns()

    @property
    def arrays(self) -> OddsArrays:
        """All counts and weights, once the events of `begin` are learned."""
        self._settle()
        return self._here

    @property
    def kept(self) -> KeptInputs:
        """The inputs of the newest interactions, likewise."""
        self._settle()
        return self._kept

    def _settle(self) -> None:
        if self._begun is not None:
            self._begun()  # what it raises is raised again, whoever asks next
            self._begun = None

    @property
    def overall_K(self) -> Float64:  # noqa: N802  (shape suffix)
        """(K,) rates over all items, below 1 also where a stream begins with late kinds of interactions before it."""
        total_C = self.arrays.total_C
        return np.asarray(np.minimum((total_C[1:] + 1.0) / (total_C[0] + 2.0), 1.0 - LEAST_RATE))

    def grow(self, table: str, num_rows: int) -> None:
        """Make room for rows below ``num_rows`` of one of `TABLES`."""
        counts = getattr(self.arrays, f"{table}_VC")
        if num_rows > len(counts):
            capacity = max(num_rows, 2 * len(counts))
            for name in (f"{table}_VC", f"{table}_dirty_V"):
                setattr(self.arrays, name, self._columns.longer(name, getattr(self.arrays, name), capacity))

    def predict(self, rows_R: Int64) -> Float64:
        """(R, K) smoothed rates of items."""
        return self._item_rates(rows_R, self.overall_K)

    def _item_rates(self, rows_R: Int64, overall_K: Float64) -> Float64:
        self.grow("item", int(rows_R.max(initial=0)) + 1)
        return smoothed_rates(self.arrays.item_VC, rows_R, overall_K, ITEM_STRENGTH)

    def prior(self, rows_R: Int64, user_done_RK: Float64, user_num_R: Float64) -> Float32:
        """(R, 2, K) log-odds of the item's rates, and how far the log-odds of the user's are above the overall ones.

        ``user_done_RK``: how many of the user's ``user_num_R`` earlier interactions had each kind.
        """
        overall_K, rate_RPK = self.overall_K, np.empty((len(rows_R), NUM_PRIORS, self.arrays.num_kinds))
        # Earlier builds counted a kind also where its interaction was not: it may be there more often than those.
        np.minimum(self._item_rates(rows_R, overall_K), 1.0 - LEAST_RATE, out=rate_RPK[:, 0])
        user_num_R1 = (user_num_R + USER_STRENGTH)[:, None]
        np.divide(user_done_RK + USER_STRENGTH * overall_K, user_num_R1, out=rate_RPK[:, 1])
        odds_RPK = log_odds(rate_RPK)
        odds_RPK[:, 1] -= log_odds(overall_K)
        return odds_RPK.astype(np.float32)

    def learn(self, events: OddsEvents, number_R: Int64) -> Float32:
        """(R, K) logits: predict and count events in order, and learn from those whose outcomes are known.

        ``number_R``: of the events' interactions, from `arrivals`; decides their ``kept_R``."""
        return self.begin(events, number_R)()

    def begin(self, events: OddsEvents, number_R: Int64, beside: Beside | None = None) -> Callable[[], Float32]:
        """`learn` on the thread ``beside``; returns what waits for the logits. So does whatever asks the rates for
        anything else."""
        self._make_room(events)
        events.kept_R = self.kept.place(number_R, events.is_new_R > 0)
        rules, logits = OddsRules(horizon=self.horizon), list[Float32]()
        wait = odds_begin(self.arrays, self.kept.rows, events, rules, beside=beside, backend=self._backend)

        def end() -> None:
            logits.append(wait())
            self._note_delays(events)

        def waited() -> Float32:
            self._settle()
            return logits[0]

        self._begun = end
        return waited

    def score(self, events: OddsEvents) -> Float32:
        """(R, K) logits of possible interactions. A row without counts is like row 0 of an empty table."""
        self._make_room(events)
        return odds_predict(self.arrays, events, backend=self._backend)

    @property
    def horizon(self) -> int:
        """After how many interactions the weights learn one; at the start of a stream they learn nothing."""
        (num, *done), most = self.arrays.total_C.tolist(), len(self.kept) // 2  # a few numbers: faster without NumPy
        if sum(min(each, max(num - each, 0.0)) for each in done) < LEAST_OUTCOMES:
            return most
        if not any(self.late_kinds):
            return 0
        num_coming = self.arrivals.num - int(self.kept.rows.count_2[0])  # new ones of the present step
        return min(self.arrivals.lag, most) if self.arrivals.is_settled(num_coming) else most

    def has_learned(self, num: int) -> bool:
        """Whether the ``num`` newest interactions with known outcomes were predicted by weights that had learned; where
        kinds come late, those of a new stream were not, and are predicted as if nothing were ever done."""
        has_begun = self.kept.rows.count_2[1] > 0
        return bool(has_begun) and (not any(self.late_kinds) or self.arrivals.is_settled(self.arrivals.lag + num))

    @property
    def late_kinds(self) -> list[bool]:
        """(K,) which kinds often come later than their interaction."""
        _, *came = self.arrays.clock.tolist()
        at_once, late = came[: len(came) // 2], came[len(came) // 2 :]
        return [after > MOST_LATE * (with_it + after) for with_it, after in zip(at_once, late, strict=True)]

    def _note_delays(self, events: OddsEvents) -> None:
        came_2K = count_came(events.bits_R, events.is_new_R, self._here.num_kinds)
        self._here.clock[1:] = self._here.clock[1:] * DELAY_DECAY ** len(events) + came_2K

    def _make_room(self, events: OddsEvents) -> None:
        domains_RA, features_RA, _ = by_table(self.arrays, events)
        for table, rows in (("item", events.row_R), ("domain", domains_RA), ("feature", features_RA)):
            if rows.size:
                self.grow(table, int(rows.max()) + 1)

    def forget(self, rows_N: Int64) -> None:
        """These rows of the item table were evicted. The totals keep them, as they will count their late kinds."""
        self.forget_values("item", rows_N)

    def forget_values(self, table: str, rows_N: Int64) -> None:
        """These rows of one of `TABLES` were evicted; what was counted stays in the totals. Pairs are left as they are:
        the next value in such a row shares their counts, as values with the same hash do."""
        counts = getattr(self.arrays, f"{table}_VC")
        rows = rows_N[rows_N < len(counts)]
        counts[rows], getattr(self.arrays, f"{table}_dirty_V")[rows] = 0.0, CHANGED

    def changes(self, *, everything: bool) -> dict[str, NDArray[Any]]:
        """What a version carries: all rows with counts, or those changed since `mark_published`; and all weights."""
        found = self.weights()
        for table in TABLES:
            counts, dirty = getattr(self.arrays, f"{table}_VC"), getattr(self.arrays, f"{table}_dirty_V")
            rows = np.flatnonzero(counts.any(axis=1) if everything else is_dirty(dirty, UNPUBLISHED))
            found |= {f"{table}_index": rows, f"{table}_VC": counts[rows]}
        return found

    def weights(self) -> dict[str, NDArray[Any]]:
        """A copy of the arrays that every version carries whole."""
        return {name: getattr(self.arrays, name).copy() for name in _WEIGHTS}

    def small(self) -> dict[str, NDArray[Any]]:
        """What belongs to no row, for a checkpoint."""
        names = (*_WEIGHTS, *_HOW_SURELY, "attributes")
        return {name: getattr(self.arrays, name) for name in names} | self.kept.small() | self._arrivals_state()

    def _arrivals_state(self) -> dict[str, NDArray[Any]]:
        return {f"arrivals_{name}": array for name, array in self.arrivals.state_dict().items()}

    def mark_published(self) -> None:
        """Start collecting the next changes: the caller delivers what `changes` returned."""
        for table in TABLES:
            clear(getattr(self.arrays, f"{table}_dirty_V"), UNPUBLISHED)

    def apply(self, changes: Mapping[str, NDArray[Any]], *, is_base: bool) -> None:
        """Apply what a version carries, which may be nothing; a base replaces everything. Raises `VersionError` for
        what another build, or another model, has published."""
        changes = self.check(changes)
        if is_base:
            for table in TABLES:
                getattr(self.arrays, f"{table}_VC")[:] = 0.0
        if not changes:
            return
        for table in TABLES:
            rows = changes[f"{table}_index"]
            self.grow(table, int(rows.max(initial=0)) + 1)
            getattr(self.arrays, f"{table}_VC")[rows] = changes[f"{table}_VC"]
        for name in _WEIGHTS:
            setattr(self.arrays, name, changes[name].copy())

    def check(self, changes: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """What a version carries, in this build's form. Raises `VersionError` if `apply` cannot take it."""
        if not changes:
            return changes
        changes = upgraded_rates(changes, self.arrays)
        expected = {name: [*(own := getattr(self.arrays, name)).shape, own.dtype.name] for name in _WEIGHTS}
        for table in TABLES:
            num, columns = np.size(changes.get(f"{table}_index", ())), getattr(self.arrays, f"{table}_VC").shape[1]
            expected |= {f"{table}_index": [num, "int64"], f"{table}_VC": [num, columns, "float32"]}
        got = {name: [*array.shape, array.dtype.name] for name, array in changes.items()}
        if wrong := {name: form for name, form in expected.items() if got.get(name) != form}:
            raise VersionError(
                f"rates: expected {wrong}, got { ({name: got.get(name) for name in wrong}) }; another build has "
                "published this version: upgrade servers first, then the trainer, and let it publish a base"
            )
        return changes

    def adopt(self, published: Rates) -> None:
        """Continue from a reader's rates: everything except the certainty of the weights."""
        own = {name: getattr(self.arrays, name) for name in _HOW_SURELY}
        self._here = replace(published.arrays.copy(), **own)
        self.mark_published()

    @property
    def is_finite(self) -> bool:
        """Whether all weights are; counts grow by one, and are halved before they are too large for that."""
        return all(bool(np.isfinite(getattr(self.arrays, name)).all()) for name in (*_WEIGHTS, *_HOW_SURELY))

    def copy(self) -> Rates:
        """The same, sharing nothing that changes."""
        other = object.__new__(Rates)
        other._backend, other._begun, other._columns = self._backend, None, GrowingColumns()
        other._here = self.arrays.copy()
        other._place_columns()
        other._kept, other.arrivals = self.kept.copy(other.arrays), self.arrivals.copy()
        return other

    def _place_columns(self) -> None:
        """Move the columns that can grow to where they can."""
        for table in TABLES:
            for name in (f"{table}_VC", f"{table}_dirty_V"):
                setattr(self.arrays, name, self._columns.taken(name, getattr(self.arrays, name)))

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint."""
        state = {name: getattr(self.arrays, name) for name in OddsArrays.__slots__}
        dirty = {name: bits & UNPUBLISHED for name, bits in state.items() if name.endswith("_dirty_V")}
        return state | dirty | self.kept.state_dict() | self._arrivals_state()

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`."""
        state = upgraded_rates(state, self.arrays)
        self._here = OddsArrays(**{name: state[name].copy() for name in OddsArrays.__slots__})
        self._place_columns()
        self.kept.load_state_dict(state)
        self.arrivals.load_state_dict(arrivals_of(state))


def probability(logit_RK: Float32) -> Float64:
    """The inverse of `log_odds`."""
    return np.asarray(1.0 / (1.0 + np.exp(-logit_RK.astype(np.float64))))


def log_odds(rate: Float64) -> Float64:
    """Log-odds of rates strictly between 0 and 1."""
    return np.asarray(np.log(rate) - np.log1p(-rate))
