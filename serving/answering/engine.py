"""Answers from one version: histories in, recommendations and probabilities out, several requests at a time.

What is computed for a user with n interactions (tokens Φ₀, a₀, Φ₁, a₁, …):

- All tokens but the last action's depend only on what the user did: their keys and values are cached for this version
  (and for the next ones, as long as the measured difference is small: `serving.answering.reuse`). When an interaction
  gets another kind (a click on what was shown), the tokens before it stay valid.
- The last action's token is computed for each request: it is asked "what next?" at the moment of the request, so its
  output, and what later layers make of it, changes with the clock.
- Each candidate adds one token, at the same position and moment; candidates do not see each other.

Cached or not, the numbers equal the trainer's forward pass up to rounding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.tokens import ITEMS, query_times, token_times
from serving.answering.diversity import diversified, pool_size
from serving.answering.ranking import Ranker
from serving.answering.request import Request, Result
from serving.answering.retrieval import Wanted, best_items
from serving.answering.reuse import ReuseProbe, difference, log_odds
from serving.model.cache import Born, CacheEntry, HistoryCache
from serving.model.columns import Columns
from serving.model.network import KeysValues
from serving.search.index import ItemSearch
from serving.users.histories import Histories
from serving.versions.manager import HeldVersion
from wire.example import no_interactions

Int64 = NDArray[np.int64]
WARMED_AT_ONCE = 16
logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Progress:
    """The state of one request: its columns, what was cached of them, and what was computed."""

    request: Request
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
        reuse: ReuseProbe | None = None, search: ItemSearch | None = None,
    ) -> None:  # fmt: skip
        self.histories, self.reuse = histories, reuse or ReuseProbe(0, 0.0)
        self.search = search
        self.cache = HistoryCache(cache_bytes)
        self._cache_is_on = cache_bytes > 0
        self._ranker = Ranker(histories, candidates_per_pass)
        self._removed: tuple[Int64, Born, Int64] | None = None
        """Removed items, a version, and the rows that it still has of them."""

    @torch.inference_mode()
    def answer(self, version: HeldVersion, requests: Sequence[Request]) -> list[Result]:
        """One `Result` for each of ``requests``, all from ``version``, which the caller holds."""
        allowed = self.reuse.allowed
        progress = [self._start(version, request, allowed) for request in requests]
        twin = self._twin(version, progress, allowed)
        whole = progress if twin is None else [*progress, twin[1]]
        self._read_histories(version, [each for each in whole if len(each.columns)])
        wanting = [each for each in whole if each.request.candidates is None]
        found = dict(zip(map(id, wanting), self._recommend(version, wanting), strict=True))
        answers = [found[id(each)] if id(each) in found else self._rank(version, each) for each in whole]
        if twin is not None:
            self.reuse.note(_difference(answers[twin[0]], answers.pop()))
        return answers

    @torch.inference_mode()
    def outputs(self, version: HeldVersion, requests: Sequence[Request]) -> Tensor:
        """(R, M) the network's output at the end of each history, computed without cache; the learnt start if empty."""
        network = version.network
        started = [
            _Progress(
                request,
                Columns.of(request.past, request.user_features, network.config),
                network.nothing(),
                version.born,
                is_twin=True,
            )
            for request in requests
        ]
        self._read_histories(version, [each for each in started if len(each.columns)])
        start_M = network.model.start_M
        return torch.stack([start_M if each.output is None else each.output for each in started])

    @torch.inference_mode()
    def warm(self, version: HeldVersion, budget_s: float) -> list[CacheEntry]:
        """Cache entries for a version that is about to come into service, to `keep` once it is: for the users with
        requests under the last one, the most recent first, as many as ``budget_s`` allows."""
        until, warmed = time.monotonic() + budget_s, list[CacheEntry]()
        entries = self.cache.requested() if self._cache_is_on and not self.reuse.allowed else []
        for at in range(0, len(entries), WARMED_AT_ONCE):
            if time.monotonic() > until:
                break
            some = entries[at : at + WARMED_AT_ONCE]
            started = [_Progress(_request_of(each), each.columns, version.network.nothing(), version.born, is_twin=True)
                       for each in some]  # fmt: skip
            self._read_histories(version, started)
            for each, done in zip(some, started, strict=True):
                assert done.fresh is not None
                past = done.fresh.narrow(0, 2 * len(each.columns) - 1, copy=True)
                warmed.append(CacheEntry(each.user, each.columns, past, version.born))
        return warmed

    def _start(self, version: HeldVersion, request: Request, allowed: int, *, is_twin: bool = False) -> _Progress:
        """``allowed``: how many swaps old a cache entry may be."""
        columns = Columns.of(request.past, request.user_features, version.network.config)
        started = _Progress(request, columns, version.network.nothing(), version.born, is_twin=is_twin)
        if not self._cache_is_on or request.user is None or not len(columns):
            return started
        entry = self.cache.get(request.user)
        age = entry.born.age(version.born) if entry is not None else -1
        num_same = columns.num_same(entry.columns) if entry is not None and age >= 0 else 0
        is_hit = num_same > 0 and age <= allowed
        if not is_twin:
            self.cache.count(hit=is_hit, reused=is_hit and age > 0)
            started.could_reuse = num_same > 0 and 0 < age <= self.reuse.max_versions
        if entry is not None and is_hit:
            # The last common action is computed again: its query time may have changed.
            started.first_token, started.born = 2 * num_same - 1, entry.born
            started.past = entry.past.narrow(0, started.first_token)
        return started

    def _twin(self, version: HeldVersion, progress: Sequence[_Progress], allowed: int) -> tuple[int, _Progress] | None:
        """One of the requests again, the other way: exactly if it reused an older version's cache, else reusing it."""
        for index, each in enumerate(progress):
            if each.could_reuse and self.reuse.wants():
                other = 0 if allowed else self.reuse.max_versions
                return index, self._start(version, each.request, other, is_twin=True)
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
        times = [_times(part, each.request.now_ms) for part, each in zip(parts, progress, strict=True)]
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
        request, fresh = done.request, done.fresh
        num_fresh = 2 * len(done.columns) - 1 - done.first_token
        if not self._cache_is_on or request.user is None or num_fresh <= 0 or fresh is None or done.is_twin:
            return
        parts = [done.past, fresh.narrow(0, num_fresh)] if len(done.past) else [fresh.narrow(0, num_fresh, copy=True)]
        self.keep(CacheEntry(request.user, done.columns, KeysValues.cat(parts), done.born), request.num_erased)

    def keep(self, entry: CacheEntry, num_erased: int) -> None:
        """Cache an entry. ``num_erased``: of the histories, before its interactions were read: if a user was forgotten
        since, it may be this one, and nothing of them is kept."""
        self.cache.put(entry)
        if self.histories.num_erased != num_erased:  # counted before the cache is told, so no order of both escapes
            self.cache.drop(entry.user)

    def _recommend(self, version: HeldVersion, progress: Sequence[_Progress]) -> list[Result]:
        table, start_M = version.tables[ITEMS], version.network.model.start_M
        if not any(each.request.k for each in progress) or not table.num_rows:
            return [_nothing() for _ in progress]
        output_RM = torch.stack([start_M if each.output is None else each.output for each in progress])
        removed = self._removed_rows(version)
        wanted = [_wanted(version, each, removed) for each in progress]
        found = best_items(version, output_RM, wanted, self.search)
        chosen = [_chosen(version, each.request, *best) for each, best in zip(progress, found, strict=True)]
        return [Result(table.keys_of(rows), scores, np.ones(len(rows), np.bool_)) for rows, scores in chosen]

    def _removed_rows(self, version: HeldVersion) -> Int64:
        """Rows of items that were removed: next to none, once the trainer has dropped them."""
        removed, known = self.histories.removed.array, self._removed
        if known is None or known[0] is not removed or known[1] != version.born:
            rows = version.tables[ITEMS].lookup(removed)
            known = self._removed = removed, version.born, rows[rows > 0]
        return known[2]

    def _rank(self, version: HeldVersion, done: _Progress) -> Result:
        past = done.past
        if done.fresh is not None:
            past = KeysValues.cat([part for part in (done.past, done.fresh) if len(part)])
        return self._ranker.rank(version, done.request, done.columns, past)


def _request_of(entry: CacheEntry) -> Request:
    """A request made at the time of the user's last action, whose own token is not cached anyway."""
    none = np.zeros(0, np.int64)
    return Request(entry.user, no_interactions(), none, int(entry.columns.time_ms_n[-1]))


def _difference(ours: Result, theirs: Result) -> float:
    """The largest difference of scores; of probabilities, in log-odds."""
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
    """Which rows of the table may be recommended. ``removed``: rows that may not."""
    request, told, table = done.request, done.columns.told, version.tables[ITEMS]
    past_n = table.lookup(np.ascontiguousarray(told.item_n))
    leaves_out = version.leaves_out_repeats if request.exclude_seen is None else request.exclude_seen
    allowed = None if request.allow is None else table.lookup(request.allow)
    denied_rows = removed if request.deny is None else np.concatenate([table.lookup(request.deny), removed])
    k = pool_size(request.k) if request.diversity else request.k
    return Wanted(k, past_n, told.bits_n, told.time_ms_n, request.now_ms, leaves_out, denied_rows, allowed)


def _chosen(
    version: HeldVersion, request: Request, rows: Int64, scores: NDArray[np.float32]
) -> tuple[Int64, NDArray[np.float32]]:
    """The answer's items among the best rows."""
    if not request.diversity:
        return rows, scores
    directions = version.tables[ITEMS].derived[version.network.tensor(rows)][:, :-1].cpu().numpy()
    places = diversified(scores, directions, request.k, request.diversity)
    return rows[places], scores[places]


def _offsets(lengths: Int64) -> Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _nothing() -> Result:
    return Result(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.bool_))
