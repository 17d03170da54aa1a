"""Why an item is recommended: the parts of its score, and which interactions of the history contribute to each.

The memory's part of a score is a sum, so the contribution of each past choice is exact
(`kernels.memory.memory_shares`). The network's part is not a sum: the effect of an interaction is measured by leaving
it out and scoring again, for the newest `NUM_PROBED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.memory import MemoryPast, MemoryShares, memory_shares
from model.kinds import chosen
from model.tokens import ITEMS
from serving.answering.engine import Engine
from serving.answering.request import Request
from serving.versions.manager import HeldVersion
from wire.example import Interactions

NUM_PROBED = 16
"""How many of the newest interactions are left out, one at a time."""
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Explains C items (hashes), in order, for a history of n interactions.

    ``score_C``: as served; NaN for an unknown item. ``is_left_out_C``: the item would not be recommended; its score is
    the one that it would have. ``standing_C``, ``groups_C`` (that its category, brand, ... are likelier after this
    history than usual), ``network_C``, ``reranking_C`` (what the shortlist's network changes) and the sum of
    ``memory_nC`` over the history add up to the score. ``without_nC``: how much lower the network's part would be
    without the interaction; NaN if not measured. ``after_nC``, ``before_nC``: decayed counts of how often users chose
    the item after the interaction's item, and before it.
    """

    item_C: Int64
    is_known_C: NDArray[np.bool_]
    is_left_out_C: NDArray[np.bool_]
    score_C: Float64
    standing_C: Float64
    groups_C: Float64
    network_C: Float64
    reranking_C: Float64
    memory_nC: Float64
    without_nC: Float64
    after_nC: Float64
    before_nC: Float64


@torch.inference_mode()
def explain(
    engine: Engine, version: HeldVersion, request: Request, items: Int64 | None, *, probes: bool
) -> Explanation:
    """Explain ``items``, or (None) those that would be recommended. The caller holds ``version``."""
    item_C, score_C, is_left_out_C = _scored(engine, version, request, items)
    table = version.tables[ITEMS]
    row_C = np.where(engine.histories.is_removed(item_C), 0, table.lookup(item_C))
    past_n = table.lookup(np.ascontiguousarray(request.past.item_hash))
    known = np.flatnonzero(row_C > 0)
    chosen_n = chosen(request.past.action_bits, version.network.config)
    counts_n, shown_n = (np.flatnonzero(which_n & (past_n > 0)) for which_n in (chosen_n, ~chosen_n))
    probed = range(max(0, len(request.past) - NUM_PROBED), len(request.past)) if probes else range(0)
    logit_RC = _logits(engine, version, [request, *(_without(request, place) for place in probed)], row_C[known])
    chosen_rows, shown_rows = past_n[counts_n].astype(np.int32), past_n[shown_n].astype(np.int32)
    past = MemoryPast.seen_at(request.now_ms, chosen_rows, request.past.timestamp_ms[counts_n], shown_rows)
    shares = memory_shares(version.memory.arrays, past, row_C[known], logit_RC[0])
    without_nC = np.full((len(request.past), len(known)), np.nan)
    for place, logit_C in zip(probed, logit_RC[1:], strict=True):
        without_nC[place] = shares.model_gain * (logit_RC[0] - logit_C)
    return _spread(item_C, known, score_C, is_left_out_C, shares, counts_n, shown_n, without_nC)


def _spread(
    item_C: Int64, known: Int64, score_C: Float64, is_left_out_C: NDArray[np.bool_], shares: MemoryShares,
    counts_n: Int64, shown_n: Int64, without_nC: Float64,
) -> Explanation:  # fmt: skip
    """Spread what is known of some items, choices and showings over all items and the whole history."""
    num, num_items = len(without_nC), len(item_C)

    def wide(part: Float64, rows: Int64 | slice = slice(None)) -> Float64:
        whole = np.zeros((num, num_items))
        whole[np.arange(num)[rows][:, None], known] = part
        return whole

    def along(part_C: Float64) -> Float64:
        whole = np.full(num_items, np.nan)
        whole[known] = part_C
        return whole

    is_known_C = np.zeros(num_items, np.bool_)
    is_known_C[known] = True
    return Explanation(
        item_C, is_known_C, is_left_out_C, score_C, along(shares.standing_C), along(shares.group_C),
        along(shares.model_C),
        along(score_C[known] - shares.total), wide(shares.past_PC, counts_n) + wide(shares.shown_SC, shown_n),
        wide(without_nC),
        wide(shares.after_PC, counts_n), wide(shares.before_PC, counts_n),
    )  # fmt: skip


def _scored(
    engine: Engine, version: HeldVersion, request: Request, items: Int64 | None
) -> tuple[Int64, Float64, NDArray[np.bool_]]:
    """The items, their scores, and which of them would not be recommended."""
    if items is None:
        (found,) = engine.answer(version, [request])
        return found.items, found.scores.astype(float), np.zeros(len(found.items), np.bool_)
    limited = replace(request, k=len(items), allow=items)
    allowed, all_of_them = engine.answer(version, [limited, replace(limited, exclude_seen=False, deny=None)])
    score_of = dict(zip(all_of_them.items.tolist(), all_of_them.scores.tolist(), strict=True))
    would = dict(zip(allowed.items.tolist(), allowed.scores.tolist(), strict=True))
    scores = [would.get(item, score_of.get(item, np.nan)) for item in items.tolist()]
    return items, np.array(scores, float), np.array([item not in would for item in items.tolist()], np.bool_)


def _logits(engine: Engine, version: HeldVersion, requests: Sequence[Request], row_C: Int64) -> Float64:
    """(R, C) the network's logits of these rows, for each request."""
    network = version.network
    query_RD = network.model.retrieval_query(engine.outputs(version, requests))
    table_CD = version.tables[ITEMS].derived[network.tensor(row_C)]
    return (query_RD @ table_CD.T).cpu().numpy().astype(float)


def _without(request: Request, place: int) -> Request:
    """The same request with a history that lacks one interaction."""
    past = request.past
    rows = Interactions(*(np.delete(getattr(past, name), place, axis=0) for name in Interactions.__slots__))
    return replace(request, past=rows)
