"""How well live traffic is ranked: 1,000 actions/s of the simulated world, whose feedback arrives late.

Every interaction is predicted once, when it is new, and scored against its final outcome. Beside the model: the rate of
each kind in hindsight, the item's smoothed rate so far, an online logistic regression on top of that rate, which learns
an interaction when the odds do (`model.rates`), and the world's own probabilities, which nothing can beat. Reported:
normalised entropy over click, like, share and hide (impressions arrive at once), for each part of the stream and for
its second half; and predicted over observed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bench.streams.simulated import ACTION, MODEL
from bench.timing import Row, row
from kernels.beside import Beside
from kernels.odds import OddsEvents
from kernels.transfer import ToHost
from state.sequencer import Sequencer
from stream.simulate import KINDS, World, WorldConfig
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch
from trainer.learner.ranking_pass import RankingPass
from trainer.learner.step import Learner
from trainer.metrics.evaluator import Forward, Ranked
from trainer.metrics.kinds import binary_log_loss
from wire.action import Action, decode_record
from wire.config import SequenceConfig
from wire.example import Example
from wire.hashing import item_hash

Floats = NDArray[np.float64]
RATE, PER_STEP, NUM_PARTS = 1000.0, 64, 6
LATE = slice(1, len(KINDS))
BY_RATE = "the item's rate"
HASHED, LEARNING_RATES = 1 << 18, (0.01, 0.03, 0.1)


class KnownWorld(World):
    """A world that reveals its probabilities: by user and item, the time of each impression and its probabilities."""

    def __init__(self, config: WorldConfig) -> None:
        super().__init__(config)
        self.chances: dict[tuple[str, int], list[tuple[int, Floats]]] = {}

    def _impression(
        self, made: list[tuple[float, Any]], shared: dict[str, Any], slot: int, interest: Floats, now_s: float
    ) -> bool:
        liking = float(self._catalogue.genres[slot] @ interest)
        click = 1.0 / (1.0 + np.exp(-(5.0 * liking - 2.0)))
        like, hide = np.clip(0.3 + 0.4 * liking, 0, 1), np.clip(0.05 - 0.2 * liking, 0, 1)
        chance_K = np.array([1.0, click, click * like, click * 0.05, (1 - click) * hide])
        key = (shared["user"], item_hash(int(self._catalogue.item_id[slot])))
        self.chances.setdefault(key, []).append((self.config.start_ms + int(now_s * 1000), chance_K))
        return super()._impression(made, shared, slot, interest, now_s)

    def chance_of(self, user: str, item: int, time_ms: int) -> Floats:
        """(K,) the probabilities at the impression of an item that is nearest in time."""
        return min(self.chances[user, item], key=lambda each: abs(each[0] - time_ms))[1]


def steps(num_actions: int, seed: int) -> Iterator[tuple[list[Example], list[Floats]]]:
    """Examples as they arrive, and the probabilities of their new interactions."""
    world, sequencer = KnownWorld(WorldConfig(seed=seed, actions_per_s=RATE)), Sequencer(ACTION, SequenceConfig())
    for offset, action in enumerate(islice(world.actions(), num_actions)):
        for decoded in decode_record(msgspec.json.encode(action), action["timestamp"] + 10**9, ACTION):
            assert isinstance(decoded, Action)
            sequencer.apply(decoded, offset, action["timestamp"])
        if offset % PER_STEP == PER_STEP - 1:
            examples = sequencer.drain()
            yield (
                examples,
                [
                    world.chance_of(each.user, int(rows.item_hash[at]), int(rows.timestamp_ms[at]))
                    for each in examples
                    for rows in [each.interactions]
                    for at in range(len(rows) - each.num_new, len(rows))
                ],
            )


@dataclass
class LogisticRegression:
    """One weight a kind for the item, the user, the domain, each feature, and the user with each of the latter, on top
    of the log-odds of the item's rate. ``rate``: Adagrad's learning rate."""

    rate: float
    weight_HK: Floats = field(default_factory=lambda: np.zeros((HASHED, len(KINDS))))
    square_HK: Floats = field(default_factory=lambda: np.full((HASHED, len(KINDS)), 1.0))

    def predict(self, seen: NDArray[np.int64], by_rate_K: Floats) -> Floats:
        """(K,). ``by_rate_K``: the item's rates when the interaction was new."""
        odds_K = by_rate_K / np.maximum(1.0 - by_rate_K, 1e-9) * np.exp(self.weight_HK[seen].sum(axis=0))
        return np.asarray(odds_K / (1.0 + odds_K))

    def learn(self, seen: NDArray[np.int64], by_rate_K: Floats, did_K: Floats) -> None:
        """Adagrad."""
        slope_K = self.predict(seen, by_rate_K) - did_K
        self.square_HK[seen] += slope_K**2
        self.weight_HK[seen] -= self.rate * slope_K / np.sqrt(self.square_HK[seen])


@dataclass
class Told:
    """Each model's predictions for the interactions, in the order in which they were new, and their outcomes."""

    keys: list[int] = field(default_factory=list)
    bits: dict[int, int] = field(default_factory=dict)
    said: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))


class Watched(RankingPass):
    """The odds' part of a step, beside which other models predict."""

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner.rates, learner.tables, MODEL)
        self.kept = learner.rates.kept
        self.told, self._seen = Told(), list[NDArray[np.int64]]()
        self._regressions = [LogisticRegression(rate) for rate in LEARNING_RATES]

    def ask(self, batch: JaggedBatch, target_row_R: NDArray[np.int64], logits_RK: ToHost) -> OddsEvents:
        """As `RankingPass.ask`; also notes the regression's inputs."""
        target_R = batch.target_R
        user_R, item_R = batch.user_key_B[batch.owner_n[target_R]], batch.item_n[target_R]
        rest_RA = np.concatenate([batch.domain_n[target_R][:, None], batch.feature_nF[target_R]], axis=1)
        columns = [np.zeros_like(user_R), user_R, item_R, *rest_RA.T, *(rest_RA + user_R[:, None] * 31).T]
        mixed = (np.stack(columns, axis=1) + np.arange(len(columns))) * np.int64(-7046029254386353131)
        self._seen += list(((mixed >> 40) & (HASHED - 1))[batch.is_new_R])
        return super().ask(batch, target_row_R, logits_RK)

    def begin(
        self, batch: JaggedBatch, forward: Forward, seen_R: NDArray[np.int64], beside: Beside | None = None
    ) -> Callable[[], Ranked]:
        """As `RankingPass.begin`, but waits; also notes what was predicted and what has arrived."""
        ranked, told = super().begin(batch, forward, seen_R, beside)(), self.told
        for key, bits in zip(batch.key_R.tolist(), batch.learned_bits_R.tolist(), strict=True):
            told.bits[key] = told.bits.get(key, 0) | bits
        told.keys += batch.key_R[batch.is_new_R].tolist()
        told.said["model"] += list(ranked.probability_RK[batch.is_new_R])
        by_rate = list(ranked.by_rate_RK[batch.is_new_R])
        told.said[BY_RATE] += by_rate
        for regression in self._regressions:
            seen = self._seen[len(self._seen) - len(by_rate) :]
            predicted = [regression.predict(*inputs) for inputs in zip(seen, by_rate, strict=True)]
            told.said[f"logistic regression, rate {regression.rate:g}"] += predicted
        return lambda: ranked

    def regress(self, first: int) -> int:
        """Have the regressions learn the interactions from ``first`` on that are old enough; returns the next one."""
        last = int(self.kept.rows.count_2[1])
        for nth in range(first, last):
            bits = int(self.told.bits[self.told.keys[nth]])
            did_K = ((bits >> np.arange(len(KINDS))) & 1).astype(np.float64)
            for regression in self._regressions:
                regression.learn(self._seen[nth], self.told.said[BY_RATE][nth], did_K)
        return last


def measure(num_actions: int, seed: int) -> list[Row]:
    """The rows of one stream."""
    learner, chances, settled = Learner(MODEL, TrainerConfig(device="cpu", metric_window=1)), list[Floats](), 0
    watched = learner.scoring.ranking_pass = Watched(learner)
    for examples, known in steps(num_actions, seed):
        learner.step(examples)
        chances += _by_key(examples, known)
        settled = watched.regress(settled)
    told = watched.told
    did_RK = np.array([told.bits[key] for key in told.keys])[:, None] >> np.arange(len(KINDS)) & 1
    said = {name: np.array(parts) for name, parts in told.said.items()}
    said |= {
        "the rate in hindsight": np.tile(did_RK.mean(axis=0), (len(did_RK), 1)),
        "the world's own chances": np.array(chances),
    }
    num = int(len(did_RK) * 0.9)  # the last interactions have not received all of their kinds
    return [each for name, chance in said.items() for each in _rows_of(name, chance[:num], did_RK[:num] > 0)]


def _by_key(examples: list[Example], known: list[Floats]) -> list[Floats]:
    """Probabilities in the order of a batch's targets: by user in order of appearance, then by place."""
    users: dict[str, list[tuple[int, Floats]]] = {}
    rest = iter(known)
    for each in examples:
        if each.num_new or each.num_feedback:
            mine = users.setdefault(each.user, [])
            mine += [(each.first_new_index + nth, next(rest)) for nth in range(each.num_new)]
    return [chance for mine in users.values() for _, chance in sorted(mine, key=lambda one: one[0])]


def _rows_of(name: str, chance_RK: Floats, did_RK: NDArray[np.bool_]) -> list[Row]:
    parts = np.array_split(np.arange(len(did_RK)), NUM_PARTS)
    half = np.concatenate(parts[NUM_PARTS // 2 :])
    entropies = " ".join(f"{_entropy(chance_RK[part], did_RK[part]):.3f}" for part in parts)
    share = chance_RK[half, LATE].sum() / did_RK[half, LATE].sum()
    note = f"by sixths of the stream {entropies}; predicts {share:.2f} times what is observed"
    return [row(f"{name}: NE", _entropy(chance_RK[half], did_RK[half]), "", note=note)]


def _entropy(chance_RK: Floats, did_RK: NDArray[np.bool_]) -> float:
    rate_K = did_RK[:, LATE].mean(axis=0)
    loss = binary_log_loss(chance_RK[:, LATE], did_RK[:, LATE]).mean(axis=0).sum()
    return float(loss) / _bits(rate_K)


def _bits(rate_K: Floats) -> float:
    rate_K = rate_K[(rate_K > 0) & (rate_K < 1)]
    return float(-(rate_K * np.log(rate_K) + (1 - rate_K) * np.log1p(-rate_K)).sum())


def run(quick: bool = False) -> list[Row]:
    """The rows of the report: two minutes of traffic, or half a minute."""
    torch.set_num_threads(1)
    return measure(30_000 if quick else 120_000, seed=1000)
