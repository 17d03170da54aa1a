"""The models that Headrace must beat, each in a few settings, in one pass that predicts before it learns.

A rival in **retrieval** scores each choice of a step from what it has learned from earlier events, then learns it; one
in **ranking** predicts the probability of every kind for each target of a step. `bench.streams.events` decides what is
predicted from which events; `bench.evaluation` evaluates the predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.rivals.bert4rec import BERT4Rec, Cloze
from bench.rivals.cooccurrence import Cooccurrence
from bench.rivals.din import DIN, LearnedRanker
from bench.rivals.factorisation import FactorisationMachine
from bench.rivals.featured import Featured
from bench.rivals.gradient import Gradient
from bench.rivals.gru4rec import GRU4Rec
from bench.rivals.libraries import River, VowpalWabbit, installed
from bench.rivals.logistic import Logistic
from bench.rivals.markov import Markov, PairMarkov
from bench.rivals.met import LastMet
from bench.rivals.own import Own, OwnByTime
from bench.rivals.popular import DecayedPopular, Popular, PopularByHour
from bench.rivals.rate import Constant, ItemRate
from bench.rivals.sasrec import SASRec
from bench.rivals.transformer import TransformerPP
from bench.streams.events import Step
from model.config import ModelConfig
from model.kinds import negative_bits, positive_bits


class Retriever(Protocol):
    """Scores choices."""

    def over(self, step: Step) -> NDArray[Any]:
        """(A, at least 1 + rows known) scores of the step's choices, each before it is learned."""


class Ranker(Protocol):
    """Predicts kinds."""

    def over(self, step: Step) -> NDArray[Any]:
        """(R, K) probabilities of the step's targets, each before it is learned."""


class Counter(Protocol):
    """Learns from one choice at a time. ``past``: rows that the user chose before, oldest first."""

    def score(self, past: NDArray[np.int32]) -> NDArray[Any]:
        """(V,) a score of every row."""

    def learn(self, row: int, past: NDArray[np.int32]) -> None:
        """Learn that the user chose ``row``."""


class EventByEvent:
    """Makes a counter a retriever: it learns each choice before it scores the next."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def over(self, step: Step) -> NDArray[Any]:
        """See `Retriever.over`."""
        scores = []
        for e in step.asked.tolist():
            row, past = int(step.events.target_R[e]), step.past(e)
            scores.append(np.array(self._counter.score(past)[: step.num_known + 1]))
            self._counter.learn(row, past)
        return np.stack(scores) if scores else np.zeros((0, step.num_known + 1))


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a rival. ``size``: targets per step; None: event by event, in Headrace's steps. ``is_seeded``:
    whether the seed matters."""

    make: Callable[[StreamInfo, int], Retriever | Ranker]
    size: int | None = None
    is_seeded: bool = False


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a rival knows about a stream before it begins: how many items it will have, and the model's configuration
    (kinds, features)."""

    num_rows: int
    model: ModelConfig

    @property
    def kinds(self) -> tuple[int, int]:
        """Positive and negative bits."""
        return positive_bits(self.model), negative_bits(self.model)


def retrievers() -> dict[str, dict[str, Setting]]:
    """Rivals in retrieval, by name and setting; the first setting is the usual one."""
    return {
        "most popular": {"all time": Setting(lambda info, _: EventByEvent(Popular(info.num_rows)))},
        "decayed popular": {
            f"half-life {half_life}": Setting(partial(_decayed, half_life))
            for half_life in (100, 300, 1000, 3000, 10_000)
        },
        "popular by hour": {f"{width:g} h": Setting(partial(_by_hour, width)) for width in (1.0, 2.0, 4.0)},
        "own frequent": {"": Setting(lambda info, _: EventByEvent(Own(info.num_rows)))},
        "own frequent, by hour": {"": Setting(lambda info, _: OwnByTime(info.num_rows))},
        "own frequent, by weekday": {"": Setting(lambda info, _: OwnByTime(info.num_rows, cycle=168, width=8.0))},
        "last met": {"": Setting(lambda *_: LastMet())},
        "last-item Markov": {"": Setting(lambda info, _: EventByEvent(Markov(info.num_rows)))},
        "last-pair Markov": {"": Setting(lambda info, _: EventByEvent(PairMarkov(info.num_rows)))},
        "co-occurrence": {
            f"{lags} lags, {decay}, power {power:g}": Setting(partial(_cooccurrence, lags, decay, power))
            for power in (0.5, 0.3)
            for lags, decay in ((20, 0.9), (15, 0.85), (10, 0.8), (5, 0.6), (40, 0.95))
        },
        "feature counts": {
            f"feature {column + 1}{', own items' * (own > 0)}": Setting(partial(_featured, column, own))
            for column, own in ((0, 0.5), (0, 0.0), (1, 0.5), (2, 0.5), (3, 0.5))
        },
        "SASRec": _sequence_settings(partial(_sequence, SASRec, Gradient)),
        "GRU4Rec": _sequence_settings(partial(_sequence, GRU4Rec, Gradient)),
        "BERT4Rec": _sequence_settings(partial(_sequence, BERT4Rec, Cloze))
        | _sequence_settings(partial(_sequence, partial(BERT4Rec, masked_share=0.05), Cloze), ", 5% masked", 1),
        "Transformer++": _sequence_settings(_transformer),
    }


def rankers() -> dict[str, dict[str, Setting]]:
    """Rivals in ranking, by name and setting."""
    rates = (0.02, 0.005, 0.01, 0.05, 0.1)
    found = {
        "constant": {"": Setting(lambda info, _: Constant(len(info.model.kinds)))},
        "item's rate": {f"strength {strength:g}": Setting(partial(_rate, strength)) for strength in (10.0, 3.0, 30.0)},
        "logistic regression": {f"rate {rate:g}": Setting(partial(_logistic, rate)) for rate in rates},
        "FM": {f"rate {rate:g}": Setting(partial(_machine, rate), is_seeded=True) for rate in rates},
        "DIN+DCN": {
            f"lr {lr:g}, {size} a step": Setting(partial(_din, lr), size, is_seeded=True)
            for lr, size in ((1e-3, 64), (3e-3, 64), (1e-3, 32), (3e-4, 32))
        },
    }
    for name, who, make, tried in (
        ("river", "River", River, (0.02, 0.05, 0.1)), ("vowpalwabbit", "Vowpal Wabbit", VowpalWabbit, (0.1, 0.5, 1.0)),
    ):  # fmt: skip
        if name in installed():
            found[who] = {f"rate {rate:g}": Setting(partial(_library, make, rate)) for rate in tried}
    return found


Maker = Callable[[StreamInfo, int, dict[str, Any]], Retriever]


def _sequence_settings(make: Maker, suffix: str = "", most: int = 4) -> dict[str, Setting]:
    """Settings that differ in Adam's rates for the network and the items, in targets per step, and in inner products or
    cosines (temperature). ``suffix``: appended to their names; ``most``: how many of them."""
    tried: list[dict[str, Any]] = [
        {"lr": 1e-3, "table_lr": 1e-2, "size": 64, "cosine": 0.2},
        {"lr": 1e-3, "table_lr": 3e-2, "size": 64, "cosine": 0.2},
        {"lr": 3e-4, "table_lr": 1e-2, "size": 16, "cosine": 0.2},
        {"lr": 3e-3, "table_lr": 3e-3, "size": 64, "cosine": 0.0},
    ]

    def named(way: dict[str, Any]) -> str:
        head = f"cosine / {way['cosine']:g}" if way["cosine"] else "inner product"
        return f"lr {way['lr']:g} and {way['table_lr']:g}, {way['size']} a step, {head}{suffix}"

    def setting(way: dict[str, Any]) -> Setting:
        return Setting(lambda info, seed: make(info, seed, way), way["size"], is_seeded=True)

    return {named(way): setting(way) for way in tried[:most]}


WIDTH, CONTEXT = 64, 50


def _sequence(
    network: Callable[..., Any], learner: Callable[..., Retriever], info: StreamInfo, seed: int, way: dict[str, Any]
) -> Retriever:
    model = network(info.num_rows, WIDTH, CONTEXT, seed, cosine=way["cosine"])
    return learner(model, way["lr"], info.kinds, seed, way["table_lr"])


def _transformer(info: StreamInfo, seed: int, way: dict[str, Any]) -> Retriever:
    config = info.model
    model = TransformerPP(
        info.num_rows, config.model_width, CONTEXT, seed, len(config.kinds), config.num_layers, config.num_heads,
        cosine=way["cosine"],
    )  # fmt: skip
    return Gradient(model, way["lr"], info.kinds, seed, way["table_lr"])


def _decayed(half_life: float, info: StreamInfo, _: int) -> Retriever:
    return EventByEvent(DecayedPopular(info.num_rows, half_life))


def _by_hour(width: float, info: StreamInfo, _: int) -> Retriever:
    return PopularByHour(info.num_rows, width)


def _cooccurrence(lags: int, decay: float, power: float, info: StreamInfo, _: int) -> Retriever:
    return EventByEvent(Cooccurrence(info.num_rows, lags, decay, power))


def _featured(column: int, own: float, info: StreamInfo, _: int) -> Retriever:
    return Featured(info.num_rows, column, own)


def _rate(strength: float, info: StreamInfo, _: int) -> Ranker:
    return ItemRate(info.num_rows, len(info.model.kinds), strength)


def _logistic(rate: float, info: StreamInfo, _: int) -> Ranker:
    return Logistic(len(info.model.kinds), rate)


def _machine(rate: float, info: StreamInfo, seed: int) -> Ranker:
    return FactorisationMachine(len(info.model.kinds), rate, seed)


def _library(make: Callable[[int, float], Ranker], rate: float, info: StreamInfo, _: int) -> Ranker:
    return make(len(info.model.kinds), rate)


def _din(lr: float, info: StreamInfo, seed: int) -> Ranker:
    return LearnedRanker(DIN(info.num_rows, info.model, WIDTH // 2, CONTEXT, seed), lr)
