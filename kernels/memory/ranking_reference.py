"""The definition of ranking one choice among all rows, in plain NumPy: everything is scored at the beginning."""

from __future__ import annotations

import numpy as np

from kernels.memory.arrays import FEATURES, LISTED, Float32, Int32, MemoryArrays
from kernels.memory.events import MemoryEvents, MemoryRules
from kernels.memory.features import leaves_out, mix, standing_of
from kernels.memory.past import MemoryPast
from kernels.memory.ranking_state import AMOUNTS, NUMBERS, MemoryRanking
from kernels.memory.sampled import memory_logits
from kernels.memory.shortlist import Prediction, Shortlist
from kernels.row_types import Rows

OUT, FOLLOWS, LIFT = -1e30, FEATURES.index("follows"), FEATURES.index("lift")


def memory_rank_begin(
    memory: MemoryArrays, ranking: MemoryRanking, event: MemoryEvents, table_VD: Rows | None, unit_width: int,
    rules: MemoryRules,
) -> None:  # fmt: skip
    """See `kernels.memory.ranking`."""
    num_rows, target, past = ranking.num_rows, int(event.target_R[0]), MemoryPast.of_event(event, 0)
    met = event.met_rows[event.met_begin_R[0] : event.met_end_R[0]]
    logit_V = ranking.logit_V
    if table_VD is not None:
        logit_V = memory_logits(ranking.query_D[None], table_VD, num_rows, unit_width)[0]
    left_out = met if leaves_out(memory, rules) else met[:0]
    done = mix(memory, num_rows, standing_of(memory, slice(num_rows)), past, left_out, target, logit_V)
    ranking.score_V[:] = np.where(done.competes_V, done.score_V, OUT)
    if memory.num_columns:
        ranking.lift_V[:] = done.feature_FV[LIFT]
    _list(memory, ranking, done)
    _count(ranking, done, logit_V, target, event.weight(0))


def _list(memory: MemoryArrays, ranking: MemoryRanking, done: Prediction) -> None:
    shortlist, num = Shortlist(memory, done), min(LISTED, int(done.competes_V.sum()))
    ranking.listed_row[:num], ranking.listed_score[:num] = shortlist.row_C, shortlist.score_C
    ranking.listed_feature[:num] = done.feature_FV[:, shortlist.row_C].T
    ranking.number[NUMBERS.index("num_listed")] = num


def _count(ranking: MemoryRanking, done: Prediction, logit_V: Float32, target: int, weight: float) -> None:
    competes_V, count_V = done.competes_V, done.feature_FV[FOLLOWS]
    score_V = done.score_V[competes_V]
    best, own_count = float(score_V.max()), float(count_V[target])
    push_V = np.exp(score_V - best)
    found = {
        "num_rows": ranking.num_rows, "target": target, "bucket": done.bucket, "next_row": ranking.num_rows,
        "competing": competes_V.sum(), "touched": competes_V.sum(),
        "more_logit": (logit_V[competes_V] > logit_V[target]).sum(),
        "same_logit": (logit_V[competes_V] == logit_V[target]).sum(),
        "touched_more": (count_V[competes_V] > own_count).sum(),
        "touched_same": (count_V[competes_V] == own_count).sum(),
    }  # fmt: skip
    for name, number in found.items():
        ranking.number[NUMBERS.index(name)] = number
    lift_mass = float(push_V @ done.feature_FV[LIFT][competes_V])
    ranking.amount[:] = best, push_V.sum(), lift_mass, logit_V[target], own_count, done.pause, weight


def memory_rank_rows(
    memory: MemoryArrays, ranking: MemoryRanking, row_N: Int32, table_VD: Rows | None, unit_width: int
) -> None:
    """Nothing is left to score."""


def memory_rank_next(
    memory: MemoryArrays, ranking: MemoryRanking, num: int, table_VD: Rows | None, unit_width: int
) -> None:
    """Nothing is left to score."""


def memory_rank_end(memory: MemoryArrays, ranking: MemoryRanking, rules: MemoryRules) -> tuple[int, int, int, float]:
    """See `kernels.memory.ranking`."""
    number = dict(zip(NUMBERS, ranking.number.tolist(), strict=True))
    best, mass, lift_mass, _, own_count, _, weight = ranking.amount.tolist()
    target, score_V = number["target"], ranking.score_V.astype(np.float64)
    _shortlist(ranking, ranking.shortlist_weight, ranking.shortlist_norm).rescore(score_V)
    untouched = number["competing"] - number["touched"]
    ranks = (
        _rank(int((score_V > score_V[target]).sum()), int((score_V == score_V[target]).sum())),
        _rank(number["more_logit"], number["same_logit"]),
        _rank(
            number["touched_more"] + (untouched if own_count < 0 else 0),
            number["touched_same"] + (untouched if own_count == 0 else 0),
        ),
    )
    _shortlist(ranking, memory.shortlist_weight, memory.shortlist_norm).learn(memory, target, rules, weight)
    if memory.num_columns:
        _learn_lift(memory, number["bucket"], weight * (lift_mass / mass - float(ranking.lift_V[target])), rules)
    return *ranks, float(best + np.log(mass) - score_V[target])


def _rank(more: int, same: int) -> int:
    return 1 + more + same // 2


def _shortlist(ranking: MemoryRanking, weight_P: Float32, norm_3F: Float32) -> Shortlist:
    num = int(ranking.number[NUMBERS.index("num_listed")])
    row_C, score_C = ranking.listed_row[:num], ranking.listed_score[:num].astype(np.float64)
    bucket = int(ranking.number[NUMBERS.index("bucket")])
    best, pause = float(ranking.amount[0]), float(ranking.amount[AMOUNTS.index("pause")])
    return Shortlist.of(row_C, score_C, ranking.listed_feature[:num].T, best, bucket, pause, weight_P, norm_3F)


def _learn_lift(memory: MemoryArrays, bucket: int, slope: float, rules: MemoryRules) -> None:
    for part, rate in ((0, rules.gain_rate), (bucket, 0.5 * rules.gain_rate)):
        memory.gain_square[part, LIFT] = memory.gain_square[part, LIFT] * rules.gain_decay + slope**2
        memory.gain[part, LIFT] -= rate * slope / np.sqrt(memory.gain_square[part, LIFT])
