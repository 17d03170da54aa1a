"""Answers from one version: histories in, recommendations and probabilities out, several requests at a time.

What is computed for a user with n interactions (tokens Φ₀, a₀, Φ₁, a₁, …):

- All tokens but the last action's depend on what was done alone: their keys and values are cached, for this version.
  When more comes to be known of an interaction (a click on what was shown), those before it stay good.
- The last action's token is computed anew: it is asked "what next?" at the moment of the request, so its output (and
  what the next layer makes of it) changes with the clock.
- Candidates come one token each on top of that, at the same position and moment; they do not see each other.

Cached or not, the numbers are the trainer's forward pass to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory import MemoryEvents
from model.config import ModelConfig
from model.memory import events_of
from model.tokens import ITEMS, query_times, token_times, unpack_kinds
from serving.cache import CacheEntry, HistoryCache
from serving.histories import Histories
from serving.holder import HeldVersion
from serving.network import Columns, KeysValues
from wire.example import Interactions

Int64 = NDArray[np.int64]
OUT = np.float32(-1e30)
"""The score of what does not compete."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One request.

    ``user`` names the cache's entry (None: do not cache). ``candidates`` (C,) int64 item hashes to rank, or None to be
    recommended ``k`` items. ``domain`` is a hash, 0: the history's last. ``now_ms``: the moment asked about. ``allow``
    (A,) hashes: recommend these alone; ``deny`` (D,) hashes: none of these. ``exclude_seen``: leave out what the
    history contains; None: where the stream has no repeats.
    """

    user: str | None
    past: Interactions
    user_features: Int64
    now_ms: int
    domain: int = 0
    candidates: Int64 | None = None
    k: int = 10
    exclude_seen: bool | None = True
    allow: Int64 | None = None
    deny: Int64 | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The answer to one `Ask`: item hashes with scores, best first; or (C, kinds) probabilities of the candidates."""

    items: Int64
    scores: NDArray[np.float32]
    known: NDArray[np.bool_]


@dataclass(slots=True, eq=False)
class _Progress:
    """Where one ask stands: its columns, what of it was cached, and what was computed."""

    ask: Ask
    columns: Columns
    past: KeysValues
    first_token: int = 0
    output: Tensor | None = None
    fresh: KeysValues | None = None


class Engine:
    """Computes; keeps nothing but the cache. For any number of threads."""

    def __init__(
        self, histories: Histories, *, cache_bytes: int = 256_000_000, candidates_per_pass: int = 2048
    ) -> None:
        self.histories = histories
        self.cache = HistoryCache(cache_bytes)
        self._cache_is_on = cache_bytes > 0
        self._candidates_per_pass = candidates_per_pass

    @torch.inference_mode()
    def answer(self, version: HeldVersion, asks: Sequence[Ask]) -> list[Found]:
        """One `Found` for each ask, all from ``version``, which the caller holds."""
        progress = [self._start(version, ask) for ask in asks]
        self._read_histories(version, [each for each in progress if len(each.columns)])
        wanting = [each for each in progress if each.ask.candidates is None]
        found = dict(zip(map(id, wanting), self._recommend(version, wanting), strict=True))
        return [found[id(each)] if id(each) in found else self._rank(version, each) for each in progress]

    def _start(self, version: HeldVersion, ask: Ask) -> _Progress:
        columns = _columns(ask, version.network.config)
        started = _Progress(ask, columns, version.network.nothing())
        if not self._cache_is_on or ask.user is None or not len(columns):
            return started
        entry = self.cache.get(version.which, ask.user)
        num_same = columns.num_same(entry.columns) if entry is not None else 0
        self.cache.count(hit=num_same > 0)
        if entry is not None and num_same > 0:
            # The last action that is the same is asked about something else by now, as far as anybody knows.
            started.first_token = 2 * num_same - 1
            started.past = entry.past.narrow(0, started.first_token)
        return started

    def _read_histories(self, version: HeldVersion, progress: Sequence[_Progress]) -> None:
        """The tokens that are not cached, of all users at once, through the layers; then the cache's share is kept."""
        if not progress:
            return
        network = version.network
        parts = [_tail(each.columns, each.first_token // 2) for each in progress]
        items_nM = network.item_tokens(version.tables, _stack(parts))
        x_TM = network.model.interleave(items_nM, network.action_tokens(items_nM, _stack(parts)))
        kept = np.concatenate(
            [_kept_tokens(part, each.first_token % 2) for part, each in zip(parts, progress, strict=True)]
        )
        times = [_times(part, each.ask.now_ms) for part, each in zip(parts, progress, strict=True)]
        key_time_T, query_time_T = (np.concatenate(column)[kept] for column in zip(*times, strict=True))
        num_tokens = np.array(
            [2 * len(part) - each.first_token % 2 for part, each in zip(parts, progress, strict=True)]
        )
        bounds = _offsets(num_tokens)
        past_len = np.array([len(each.past) for each in progress], np.int64)
        y_SM, fresh = network.extend(
            x_TM[network.tensor(kept)], network.tensor(query_time_T), network.tensor(key_time_T),
            network.tensor(bounds), KeysValues.cat([each.past for each in progress]),
            network.tensor(_offsets(past_len)[:-1]), network.tensor(past_len),
        )  # fmt: skip
        for index, each in enumerate(progress):
            each.output = y_SM[int(bounds[index + 1]) - 1]
            each.fresh = fresh.narrow(int(bounds[index]), int(bounds[index + 1]))
            self._keep(version, each)

    def _keep(self, version: HeldVersion, done: _Progress) -> None:
        ask, fresh = done.ask, done.fresh
        num_fresh = 2 * len(done.columns) - 1 - done.first_token
        if not self._cache_is_on or ask.user is None or num_fresh <= 0 or fresh is None:
            return
        parts = [done.past, fresh.narrow(0, num_fresh)] if len(done.past) else [fresh.narrow(0, num_fresh, copy=True)]
        self.cache.put(version.which, ask.user, CacheEntry(done.columns, KeysValues.cat(parts)))

    def _recommend(self, version: HeldVersion, progress: Sequence[_Progress]) -> list[Found]:
        table = version.tables[ITEMS]
        if not any(each.ask.k for each in progress) or not table.num_rows:
            return [_nothing() for _ in progress]
        network = version.network
        outputs = [network.model.start_M if each.output is None else each.output for each in progress]
        score_RV = (network.model.retrieval_query(torch.stack(outputs)) @ table.derived.T).cpu().numpy()
        past = [table.lookup(np.ascontiguousarray(each.columns.item_n)) for each in progress]
        version.memory.score(_events(version, progress, past), score_RV)
        found = []
        for each, past_n, score_V in zip(progress, past, score_RV, strict=True):
            score_V[_excluded_rows(version, each.ask, past_n)] = OUT
            rows = best_rows(score_V, each.ask.k, None if each.ask.allow is None else table.lookup(each.ask.allow))
            found.append(Found(table.keys_of(rows), score_V[rows], np.ones(len(rows), np.bool_)))
        return found

    def _rank(self, version: HeldVersion, done: _Progress) -> Found:
        assert done.ask.candidates is not None
        candidates, network = done.ask.candidates, version.network
        past = (
            done.past if done.fresh is None else KeysValues.cat([part for part in (done.past, done.fresh) if len(part)])
        )
        step = self._candidates_per_pass
        logits = [
            self._rank_some(version, done, past, candidates[at : at + step]) for at in range(0, len(candidates), step)
        ]
        probabilities = torch.sigmoid(torch.cat(logits)).cpu().numpy()
        known = version.tables[ITEMS].lookup(candidates) > 0
        assert probabilities.shape == (len(candidates), len(network.config.kinds))
        return Found(candidates, probabilities, known)

    def _rank_some(self, version: HeldVersion, done: _Progress, past: KeysValues, candidates: Int64) -> Tensor:
        """One pass over so many candidates: one past, one position, one moment, and none sees another."""
        network, ask, num = version.network, done.ask, len(candidates)
        domain = ask.domain or (int(done.columns.domain_n[-1]) if len(done.columns) else 0)
        features = self.histories.features_of(candidates, network.config.num_features)
        user_features = _user_features(ask, network.config, num)
        asked = Columns(candidates, np.zeros(num, np.uint32), np.full(num, ask.now_ms), np.full(num, domain),
                        np.full(num, np.nan, np.float32), features, user_features)  # fmt: skip
        x_CM = network.item_tokens(version.tables, asked)
        y_CM = network.judge(x_CM, ask.now_ms, past)
        assert version.tables.rates is not None
        rows_C, done_K = version.tables[ITEMS].lookup(candidates), _kinds_done(done.columns, network.config)
        prior_CPK = version.tables.rates.prior(
            rows_C, np.repeat(done_K[None], num, axis=0), np.full(num, float(len(done.columns)))
        )
        return network.model.rank_logits(y_CM, network.tensor(prior_CPK))


def _kinds_done(columns: Columns, config: ModelConfig) -> NDArray[np.float64]:
    """(K,) how many of the user's interactions had each kind."""
    return np.asarray(unpack_kinds(columns.bits_n, len(config.kinds)).sum(axis=0, dtype=np.float64))


def _columns(ask: Ask, config: ModelConfig) -> Columns:
    past, num = ask.past, len(ask.past)
    fits = past.feature_hash.shape == (num, config.num_features)
    features = past.feature_hash if fits else np.zeros((num, config.num_features), np.int64)
    return Columns(past.item_hash, past.action_bits, past.timestamp_ms, past.domain_hash, past.value, features,
                   _user_features(ask, config, num))  # fmt: skip


def _user_features(ask: Ask, config: ModelConfig, num: int) -> Int64:
    """(num, F_user) the user's features on every interaction; 0 for somebody of whom none are known."""
    known = ask.user_features
    row = known if len(known) == config.num_user_features else np.zeros(config.num_user_features, np.int64)
    return np.broadcast_to(row, (num, len(row)))


def _tail(columns: Columns, first: int) -> Columns:
    return Columns(*(getattr(columns, name)[first:] for name in Columns.__slots__))


def _stack(parts: Sequence[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    return Columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in Columns.__slots__))


def _kept_tokens(part: Columns, skip: int) -> NDArray[np.bool_]:
    kept = np.ones(2 * len(part), np.bool_)
    kept[:skip] = False
    return kept


def _times(part: Columns, now_ms: int) -> tuple[Int64, Int64]:
    """(2n,) key and query times of one user's tokens, asked at ``now_ms``."""
    last = query_times(part.time_ms_n, np.array([0, len(part)]), np.array([now_ms]))
    return token_times(part.time_ms_n, last)


def _events(version: HeldVersion, progress: Sequence[_Progress], past: Sequence[Int64]) -> MemoryEvents:
    """What the memory is asked: what follows each history."""
    starts_B1 = _offsets(np.array([len(rows) for rows in past]))
    bits_n = np.concatenate([each.columns.bits_n for each in progress])
    events = events_of(
        np.concatenate(past), bits_n, starts_B1, np.arange(len(past)), starts_B1[1:], version.network.config,
        is_chosen_R=None,
    )  # fmt: skip
    leaves_out = np.array([_leaves_out(version, each.ask) for each in progress])
    return replace(events, met_end_R=np.where(leaves_out, events.met_end_R, events.met_begin_R))


def _excluded_rows(version: HeldVersion, ask: Ask, past_n: Int64) -> Int64:
    """Rows that are no answer: what was seen, where that is left out, and what is denied."""
    denied = version.tables[ITEMS].lookup(ask.deny) if ask.deny is not None and len(ask.deny) else past_n[:0]
    return np.concatenate([past_n, denied]) if _leaves_out(version, ask) else denied


def _leaves_out(version: HeldVersion, ask: Ask) -> bool:
    return version.leaves_out_repeats if ask.exclude_seen is None else ask.exclude_seen


def best_rows(score_V: NDArray[np.float32], k: int, allowed: Int64 | None) -> Int64:
    """The ``k`` best rows that compete, of the allowed ones (None: all); best first, equal scores by row."""
    rows = np.flatnonzero(score_V > OUT / 2)
    rows = rows if allowed is None else np.intersect1d(rows, allowed)
    k = min(k, len(rows))
    if k == 0:
        return rows[:0]
    least = np.partition(score_V[rows], len(rows) - k)[len(rows) - k]
    rows = rows[score_V[rows] >= least]
    return np.asarray(rows[np.lexsort((rows, -score_V[rows]))][:k])


def _offsets(lengths: Int64) -> Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _nothing() -> Found:
    return Found(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.bool_))
