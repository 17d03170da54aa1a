"""Answers from one version: histories in, recommendations and probabilities out, several requests at a time.

What is computed for a user with n interactions (tokens Φ₀, a₀, Φ₁, a₁, …):

- All tokens but the last action's depend only on what the user did: their keys and values are cached for this version
  (and for the next ones, as long as the measured difference is small: `serving.reuse`). When an interaction gets
  another kind (a click on what was shown), the tokens before it stay valid.
- The last action's token is computed for each request: it is asked "what next?" at the moment of the request, so its
  output, and what later layers make of it, changes with the clock.
- Each candidate adds one token, at the same position and moment; candidates do not see each other.

Cached or not, the numbers equal the trainer's forward pass up to rounding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.odds import OddsEvents
from model.config import ModelConfig
from model.hstu import from_log_value
from model.rates import alike_of, attributes_of, probability
from model.tokens import ITEMS, query_times, token_times
from serving.cache import Born, CacheEntry, HistoryCache
from serving.columns import Columns, user_feature_rows
from serving.diversity import diversified, pool_size
from serving.histories import Histories
from serving.holder import HeldVersion
from serving.network import KeysValues
from serving.request import Request, Result
from serving.retrieval import Wanted, best_items
from serving.reuse import ReuseProbe, difference, log_odds
from wire.example import no_interactions

Int64 = NDArray[np.int64]
WARMED_AT_ONCE = 4
logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Progress:
    """The state of one request: its columns, what was cached of them, and what was computed."""

    ask: Request
    columns: Columns
    past: KeysValues
    born: Born
    could_reuse: bool = False
    is_twin: bool = False
    first_token: int = 0
    output: Tensor | None = None
    fresh: KeysValues | None = None


class Engine:
    """Computes answers; its only state is the cache. Safe for any number of threads."""

    def __init__(
        self, histories: Histories, *, cache_bytes: int = 256_000_000, candidates_per_pass: int = 2048,
        reuse: ReuseProbe | None = None,
    ) -> None:  # fmt: skip
        self.histories, self.reuse = histories, reuse or ReuseProbe(0, 0.0)
        self.cache = HistoryCache(cache_bytes)
        self._cache_is_on = cache_bytes > 0
        self._candidates_per_pass = candidates_per_pass

    @torch.inference_mode()
    def answer(self, version: HeldVersion, asks: Sequence[Request]) -> list[Result]:
        """One `Result` for each of ``asks``, all from ``version``, which the caller holds."""
        allowed = self.reuse.allowed
        progress = [self._start(version, ask, allowed) for ask in asks]
        twin = self._twin(version, progress, allowed)
        whole = progress if twin is None else [*progress, twin[1]]
        self._read_histories(version, [each for each in whole if len(each.columns)])
        wanting = [each for each in whole if each.ask.candidates is None]
        found = dict(zip(map(id, wanting), self._recommend(version, wanting), strict=True))
        answers = [found[id(each)] if id(each) in found else self._rank(version, each) for each in whole]
        if twin is not None:
            self.reuse.note(_difference(answers[twin[0]], answers.pop()))
        return answers

    @torch.inference_mode()
    def outputs(self, version: HeldVersion, asks: Sequence[Request]) -> Tensor:
        """(R, M) the network's output at the end of each history, computed without cache; the learnt start if empty."""
        network = version.network
        started = [
            _Progress(
                ask,
                Columns.of(ask.past, ask.user_features, network.config),
                network.nothing(),
                version.born,
                is_twin=True,
            )
            for ask in asks
        ]
        self._read_histories(version, [each for each in started if len(each.columns)])
        start_M = network.model.start_M
        return torch.stack([start_M if each.output is None else each.output for each in started])

    @torch.inference_mode()
    def warm(self, version: HeldVersion, budget_s: float) -> list[CacheEntry]:
        """Cache entries for a version that is about to come into service, to `put` once it is: for the users who asked
        under the last one, the most recent first, as many as ``budget_s`` allows."""
        until, warmed = time.monotonic() + budget_s, list[CacheEntry]()
        entries = self.cache.asked() if self._cache_is_on and not self.reuse.allowed else []
        for at in range(0, len(entries), WARMED_AT_ONCE):
            if time.monotonic() > until:
                break
            some = entries[at : at + WARMED_AT_ONCE]
            started = [_Progress(_asked_by(each), each.columns, version.network.nothing(), version.born, is_twin=True)
                       for each in some]  # fmt: skip
            self._read_histories(version, started)
            for each, done in zip(some, started, strict=True):
                assert done.fresh is not None
                past = done.fresh.narrow(0, 2 * len(each.columns) - 1, copy=True)
                warmed.append(CacheEntry(each.user, each.columns, past, version.born))
        return warmed

    def _start(self, version: HeldVersion, ask: Request, allowed: int, *, is_twin: bool = False) -> _Progress:
        """``allowed``: how many swaps old a cache entry may be."""
        columns = Columns.of(ask.past, ask.user_features, version.network.config)
        started = _Progress(ask, columns, version.network.nothing(), version.born, is_twin=is_twin)
        if not self._cache_is_on or ask.user is None or not len(columns):
            return started
        entry = self.cache.get(ask.user)
        age = entry.born.age(version.born) if entry is not None else -1
        num_same = columns.num_same(entry.columns) if entry is not None and age >= 0 else 0
        is_hit = num_same > 0 and age <= allowed
        if not is_twin:
            self.cache.count(hit=is_hit, reused=is_hit and age > 0)
            started.could_reuse = num_same > 0 and 0 < age <= self.reuse.max_versions
        if entry is not None and is_hit:
            # The last action that is the same is asked about again: its query time may be another one by now.
            started.first_token, started.born = 2 * num_same - 1, entry.born
            started.past = entry.past.narrow(0, started.first_token)
        return started

    def _twin(self, version: HeldVersion, progress: Sequence[_Progress], allowed: int) -> tuple[int, _Progress] | None:
        """One of the requests again, the other way: exactly if it reused an older version's cache, else reusing it."""
        for index, each in enumerate(progress):
            if each.could_reuse and self.reuse.wants():
                other = 0 if allowed else self.reuse.max_versions
                return index, self._start(version, each.ask, other, is_twin=True)
        return None

    def _read_histories(self, version: HeldVersion, progress: Sequence[_Progress]) -> None:
        """Put the tokens that are not cached, of all users at once, through the layers, and cache what may be."""
        if not progress:
            return
        network = version.network
        parts = [each.columns.tail(each.first_token // 2) for each in progress]
        new = Columns.cat(parts)
        items_nM = network.item_tokens(version.tables, new)
        x_TM = network.model.interleave(items_nM, network.action_tokens(items_nM, new))
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
        y_BM, fresh = network.extend(
            x_TM[network.tensor(kept)], network.tensor(query_time_T), network.tensor(key_time_T),
            network.tensor(bounds), KeysValues.cat([each.past for each in progress]),
            network.tensor(_offsets(past_len)[:-1]), network.tensor(past_len),
        )  # fmt: skip
        for index, each in enumerate(progress):
            each.output = y_BM[index]
            each.fresh = fresh.narrow(int(bounds[index]), int(bounds[index + 1]))
            self._keep(each)

    def _keep(self, done: _Progress) -> None:
        ask, fresh = done.ask, done.fresh
        num_fresh = 2 * len(done.columns) - 1 - done.first_token
        if not self._cache_is_on or ask.user is None or num_fresh <= 0 or fresh is None or done.is_twin:
            return
        parts = [done.past, fresh.narrow(0, num_fresh)] if len(done.past) else [fresh.narrow(0, num_fresh, copy=True)]
        self.cache.put(CacheEntry(ask.user, done.columns, KeysValues.cat(parts), done.born))

    def _recommend(self, version: HeldVersion, progress: Sequence[_Progress]) -> list[Result]:
        table, start_M = version.tables[ITEMS], version.network.model.start_M
        if not any(each.ask.k for each in progress) or not table.num_rows:
            return [_nothing() for _ in progress]
        output_RM = torch.stack([start_M if each.output is None else each.output for each in progress])
        removed = np.fromiter(self.histories.removed, np.int64)
        wanted = [_wanted(version, each, removed) for each in progress]
        found = best_items(version, output_RM, wanted)
        chosen = [_chosen(version, each.ask, *best) for each, best in zip(progress, found, strict=True)]
        return [Result(table.keys_of(rows), scores, np.ones(len(rows), np.bool_)) for rows, scores in chosen]

    def _rank(self, version: HeldVersion, done: _Progress) -> Result:
        assert done.ask.candidates is not None
        candidates, network = done.ask.candidates, version.network
        past = (
            done.past if done.fresh is None else KeysValues.cat([part for part in (done.past, done.fresh) if len(part)])
        )
        step = self._candidates_per_pass
        y_CM = torch.cat([
            self._outputs(version, done, past, candidates[at : at + step]) for at in range(0, len(candidates), step)
        ])  # fmt: skip
        probabilities = self._odds(version, done, self._logits(version, done, y_CM))
        known = (version.tables[ITEMS].lookup(candidates) > 0) & ~self.histories.is_removed(candidates)
        assert probabilities.shape == (len(candidates), len(network.config.kinds))
        values = from_log_value(network.model.values(y_CM)).cpu().numpy() if network.config.predict_value else None
        return Result(candidates, probabilities, known, values)

    def _odds(self, version: HeldVersion, done: _Progress, logit_CK: Tensor) -> NDArray[np.float32]:
        """(C, K) what the network's logits and the counts together say of the candidates."""
        assert done.ask.candidates is not None
        assert version.tables.rates is not None
        candidates, config, columns = done.ask.candidates, version.network.config, done.columns.told
        num, num_past = len(candidates), len(columns)
        asked = self._asked(done, config, candidates)
        features_CF = np.concatenate([asked.features, asked.user_features], axis=1)
        logits = version.tables.rates.score(
            OddsEvents(
                row_R=version.tables[ITEMS].lookup(candidates).astype(np.int32),
                item_R=candidates,
                attribute_RA=attributes_of(version.tables.tables, asked.domain_n, features_CF, config),
                network_RK=logit_CK.float().cpu().numpy(),
                bits_R=asked.bits_n,
                is_new_R=np.ones(num, np.uint8),
                order_R=np.arange(num),
                past_item_n=np.ascontiguousarray(columns.item_n),
                past_bits_n=np.ascontiguousarray(columns.bits_n),
                past_begin_R=np.full(num, max(0, num_past - config.max_context)),
                past_end_R=np.full(num, num_past),
                alike_RL=alike_of(asked.domain_n, asked.features, config),
                past_alike_nL=alike_of(columns.domain_n, columns.features, config),
                kept_R=np.full(num, -1, np.int32),
            )
        )
        return probability(logits).astype(np.float32)

    def _asked(self, done: _Progress, config: ModelConfig, candidates: Int64) -> Columns:
        """Candidates as interactions that have not happened."""
        ask, num = done.ask, len(candidates)
        domain = ask.domain or (int(done.columns.domain_n[-1]) if len(done.columns) else 0)
        features = self.histories.items.features_of(candidates, config.num_features)
        user_features = user_feature_rows(ask.user_features, config, num)
        return Columns.of_candidates(candidates, ask.now_ms, domain, features, user_features)

    def _outputs(self, version: HeldVersion, done: _Progress, past: KeysValues, candidates: Int64) -> Tensor:
        """(C, M) from one pass over some candidates: one past, one position, one moment, and none sees another."""
        network = version.network
        asked = self._asked(done, network.config, candidates)
        if network.config.user_tokens:  # the features are tokens of the past
            asked = replace(asked, user_features=np.zeros_like(asked.user_features))
        return network.score_candidates(network.item_tokens(version.tables, asked), done.ask.now_ms, past)

    def _logits(self, version: HeldVersion, done: _Progress, y_CM: Tensor) -> Tensor:
        """(C, K) the network's logits of the candidates."""
        assert done.ask.candidates is not None
        assert version.tables.rates is not None
        network, told, candidates, num = version.network, done.columns.told, done.ask.candidates, len(y_CM)
        rows_C, done_K = version.tables[ITEMS].lookup(candidates), told.num_by_kind(len(network.config.kinds))
        prior_CPK = version.tables.rates.prior(
            rows_C, np.repeat(done_K[None], num, axis=0), np.full(num, float(len(told)))
        )
        return network.model.rank_logits(y_CM, network.tensor(prior_CPK))


def _asked_by(entry: CacheEntry) -> Request:
    """A request at the moment of the user's last action; that action's own token is not cached anyway."""
    none = np.zeros(0, np.int64)
    return Request(entry.user, no_interactions(), none, int(entry.columns.time_ms_n[-1]))


def _difference(ours: Result, theirs: Result) -> float:
    """In units of the scores; of probabilities, in log-odds."""
    left, right = (each.scores if each.scores.ndim == 1 else log_odds(each.scores) for each in (ours, theirs))
    return difference(left, ours.items, right, theirs.items)


def _kept_tokens(part: Columns, skip: int) -> NDArray[np.bool_]:
    kept = np.ones(2 * len(part), np.bool_)
    kept[:skip] = False
    return kept


def _times(part: Columns, now_ms: int) -> tuple[Int64, Int64]:
    """(2n,) key and query times of one user's tokens, asked at ``now_ms``."""
    last = query_times(part.time_ms_n, np.array([0, len(part)]), np.array([now_ms]))
    return token_times(part.time_ms_n, last)


def _wanted(version: HeldVersion, done: _Progress, removed: Int64) -> Wanted:
    """Which rows of the table may be recommended."""
    ask, told, table = done.ask, done.columns.told, version.tables[ITEMS]
    past_n = table.lookup(np.ascontiguousarray(told.item_n))
    leaves_out = version.leaves_out_repeats if ask.exclude_seen is None else ask.exclude_seen
    denied = [each for each in (ask.deny, removed) if each is not None and len(each)]
    allowed = None if ask.allow is None else table.lookup(ask.allow)
    denied_rows = table.lookup(np.concatenate(denied)) if denied else past_n[:0]
    k = pool_size(ask.k) if ask.diversity else ask.k
    return Wanted(k, past_n, told.bits_n, told.time_ms_n, ask.now_ms, leaves_out, denied_rows, allowed)


def _chosen(
    version: HeldVersion, ask: Request, rows: Int64, scores: NDArray[np.float32]
) -> tuple[Int64, NDArray[np.float32]]:
    """Of the best rows those that answer."""
    if not ask.diversity:
        return rows, scores
    directions = version.tables[ITEMS].derived[version.network.tensor(rows)][:, :-1].cpu().numpy()
    places = diversified(scores, directions, ask.k, ask.diversity)
    return rows[places], scores[places]


def _offsets(lengths: Int64) -> Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _nothing() -> Result:
    return Result(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.bool_))
