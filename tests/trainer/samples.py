"""Small streams of examples, small learners, and slow definitions of what they must predict."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import ModelConfig
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.snapshot import learner_arrays, restore_learner
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from trainer.metrics.prequential import Predictions
from wire.example import Example, Interactions, interactions_of, rows_of
from wire.history import Histories

KINDS = ("view", "click", "like")
START_MS = 1_700_000_000_000
MODEL = ModelConfig(
    kinds=KINDS,
    num_features=2,
    num_user_features=1,
    num_layers=2,
    model_width=16,
    num_heads=2,
    qk_width=8,
    value_width=8,
    item_width=9,
    max_context=10,
    norm_len=8.0,
    use_value=True,
)
FUXI = replace(MODEL, block="fuxi", ffn_width=24)
TRAINER = TrainerConfig(device="cpu", seed=7, dense_lr=1e-2, table_lr=0.2, metric_window=64)
SAMPLED = replace(TRAINER, full_softmax_max_items=4, num_negatives=16)


def columns(rng: np.random.Generator, num: int, num_items: int, start_ms: int = START_MS) -> Interactions:
    """Random interactions with domains, values and two features, some of them absent."""
    return Interactions(
        item_hash=rng.integers(1, num_items + 1, num) * 7919,
        action_bits=rng.integers(0, 2 ** len(KINDS), num).astype(np.uint32),
        timestamp_ms=start_ms + np.cumsum(rng.integers(0, 90_000, num)),
        domain_hash=rng.integers(0, 3, num),
        value=np.where(rng.random(num) < 0.5, np.nan, rng.normal(size=num)).astype(np.float32),
        feature_hash=rng.integers(0, 5, (num, 2)),
    )


_num_users = itertools.count()


def example(
    rows: Interactions, num_new: int, *, user: str = "", number: int = 0, partition: int = 0, segment: int = 0,
    segment_len: int = 4096, feedback: dict[int, int] | None = None, user_feature: int = 0,
    names: dict[int, str | int] | None = None,
) -> Example:  # fmt: skip
    """An example of these interactions, of a new user each time unless ``user`` is given; the fields for restoring a
    worker are empty. ``feedback``: place in the segment → kinds that arrived for it."""
    newest_ms = int(rows.timestamp_ms[-1])
    feedback = feedback or {}
    return Example(
        user=user or f"user of example {next(_num_users)}",
        partition=partition,
        writer_epoch=1,
        number=number,
        segment=segment,
        segment_len=segment_len,
        rows=rows_of(rows),
        num_new=num_new,
        feedback_index=np.array(list(feedback), np.int64),
        feedback_bits=np.array(list(feedback.values()), np.uint32),
        session_hash=np.zeros(len(rows), np.int64),
        action_ids=np.empty(0, np.int64),
        user_feature_hash=np.array([user_feature], np.int64),
        user_offset=number,
        user_index=0,
        applied_offset=number,
        resume_from_offset=number + 1,
        newest_event_ms=newest_ms,
        newest_record_ms=newest_ms + 5,
        names=names or {},
    )


def cut(interactions: Interactions, part: slice) -> Interactions:
    """A slice of the interactions."""
    return Interactions(*(getattr(interactions, name)[part] for name in Interactions.__dataclass_fields__))


@dataclass
class World:
    """Users who act; `examples` makes the next examples, as the worker would: an interaction starts with some of its
    kinds, and may get the others later."""

    seed: int = 0
    num_users: int = 6
    num_items: int = 30
    segment_len: int = 4
    late: bool = True
    number: int = 0
    done: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._lives = [columns(self._rng, 400, self.num_items) for _ in range(self.num_users)]
        self._final = [life.action_bits.copy() for life in self._lives]
        if self.late:
            for life in self._lives:
                life.action_bits[:] &= self._rng.integers(0, 2 ** len(KINDS), len(life)).astype(np.uint32)
        self._waiting: list[Example] = []

    def examples(self, num: int, *, max_new: int = 4) -> list[Example]:
        """The next examples, of random users; about one in eight only repeats a segment and teaches nothing."""
        while len(self._waiting) < num:
            self._waiting += self._act(max_new)
        found, self._waiting = self._waiting[:num], self._waiting[num:]
        return found

    def _act(self, max_new: int) -> list[Example]:
        """One user's next actions, as examples of the segments that they touch."""
        user = int(self._rng.integers(self.num_users))
        done = self.done.get(user, 0)
        num_new = int(self._rng.integers(1, max_new + 1)) if not done or self._rng.random() > 0.125 else 0
        life, final, feedback = self._lives[user], self._final[user], dict[int, int]()
        for place in range(max(0, done - 5), done) if num_new and self.late else ():
            missing = int(final[place] & ~life.action_bits[place])
            if missing and self._rng.random() < 0.3:
                feedback[place] = missing
        for place, bits in feedback.items():
            life.action_bits[place] |= bits
        self.done[user] = end = done + num_new
        touched = sorted({place // self.segment_len for place in [*feedback, *range(done, end)]})
        return [
            self._example(user, segment, done, end, feedback) for segment in touched or [(done - 1) // self.segment_len]
        ]

    def _example(self, user: int, segment: int, done: int, end: int, feedback: dict[int, int]) -> Example:
        first = segment * self.segment_len
        last = min(first + self.segment_len, end)
        rows = cut(self._lives[user], slice(first, last))
        rows = replace(rows, action_bits=rows.action_bits.copy())
        number, self.number = self.number, self.number + 1
        num_new = max(0, last - max(first, done))
        return example(
            rows, num_new, user=f"user {user}", number=number, segment=segment, segment_len=self.segment_len,
            feedback={place - first: bits for place, bits in feedback.items() if first <= place < last},
            user_feature=user % 3,
            names={int(item): f"item {item}" for item in rows.item_hash[len(rows) - num_new :]},
        )  # fmt: skip


@dataclass
class Piece:
    """What a step teaches about one interaction."""

    user: str
    place: int
    is_new: bool
    bits: int


def pieces_of(examples: Sequence[Example]) -> list[Piece]:
    """Pieces by user, in the order of the users' first pieces; each user's in the order of interactions."""
    found: dict[str, dict[int, Piece]] = {}
    for each in examples:
        new = range(len(each.interactions) - each.num_new, len(each.interactions))
        pieces = [(index, int(each.interactions.action_bits[index]), True) for index in new]
        later = zip(each.feedback_index.tolist(), each.feedback_bits.tolist(), strict=True)
        for index, bits, is_new in [*pieces, *((index, bits, False) for index, bits in later)]:
            user = found.setdefault(each.user, {})
            place = each.segment * each.segment_len + index
            piece = user.setdefault(place, Piece(each.user, place, is_new, 0))
            piece.is_new |= is_new
            piece.bits |= bits
    return [user[place] for user in found.values() for place in sorted(user)]


def folded(learner: Learner, examples: Sequence[Example]) -> Histories:
    """The learner's histories after these examples, with nothing forgotten."""
    histories = copy.deepcopy(learner.histories)
    for each in examples:
        histories.gather(each)
    return histories


def taught(
    config: TrainerConfig = TRAINER, model: ModelConfig = MODEL, *, num_steps: int = 4, seed: int = 0
) -> tuple[Learner, World]:
    """A learner some steps into a world, and the world."""
    world, learner = World(seed), Learner(model, config)
    for _ in range(num_steps):
        learner.step(world.examples(8))
    return learner, world


def twin(learner: Learner, kind: Callable[..., Learner] = Learner) -> Learner:
    """Another learner with the same state, sharing nothing with the first."""
    arrays = {name: array.copy() for name, array in learner_arrays(learner).items()}
    other = kind(learner.model_config, learner.config, learner.device)
    meta = {"model": learner.model_config.as_dict(), "trainer": learner.config.learning_dict()}
    restore_learner(other, Checkpoint(learner.num_steps, arrays, meta))
    other.histories = copy.deepcopy(learner.histories)
    return other


def predictions_of(learner: Learner, examples: Sequence[Example]) -> Predictions:
    """The predictions of a step, which ``learner`` then learns."""
    caught: list[Predictions] = []
    add = learner.metrics.add

    def catch(predictions: Predictions) -> None:
        caught.append(copy.deepcopy(predictions))
        add(predictions)

    learner.metrics.add = catch  # type: ignore[method-assign]
    try:
        learner.step(examples)
    finally:
        learner.metrics.add = add  # type: ignore[method-assign]
    return caught[0]


def assert_same_arrays(left: dict[str, NDArray[Any]], right: dict[str, NDArray[Any]]) -> None:
    """Assert that all arrays are equal, bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if not _same_bits(left[name], right[name])]
    assert not different, f"different: {different}"


def _same_bits(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@dataclass(frozen=True)
class SlowPrediction:
    """One target: query (D,), probabilities (K,), its row when predicted, 0 if unknown, and whether it is a choice."""

    query_D: NDArray[np.float32]
    probability_K: NDArray[np.float64]
    row: int
    is_wanted: bool
    piece: Piece


@torch.no_grad()
def predict_slowly(learner: Learner, examples: Sequence[Example]) -> list[SlowPrediction]:
    """Predict a step's targets one by one, each from its own past; nothing jagged, nothing fused.

    For worlds whose domains and features the learner already knows: a step would give new ones their first rows.
    """
    histories, pieces, found = folded(learner, examples), pieces_of(examples), []
    for piece in pieces:
        history = histories.users[piece.user]
        first_target = min(each.place for each in pieces if each.user == piece.user)
        past = history.rows(max(0, first_target - learner.max_context), piece.place + 1)
        found.append(_predict_one(learner, interactions_of(past), history.user_features, piece))
    return found


def prior_of(learner: Learner, past: Interactions) -> torch.Tensor:
    """(1, 2, K) the prior from rates for the last of these interactions."""
    rates, row = learner.rates, int(learner.items.lookup(past.item_hash[-1:])[0])
    num_V, done_VK = rates.arrays.item_VC[:, 0], rates.arrays.item_VC[:, 1 : 1 + len(KINDS)]
    overall = (done_VK.sum(axis=0) + 1) / (num_V.sum() + 2)
    item = (done_VK[row] + 10 * overall) / (num_V[row] + 10)
    bits = past.action_bits[:-1]
    done = np.array([int((bits >> bit & 1).sum()) for bit in range(len(KINDS))])
    user = (done + 5 * overall) / (len(bits) + 5)
    odds = [np.log(rate / (1 - rate)) for rate in (item, user, overall)]
    return torch.tensor(np.stack([odds[0], odds[1] - odds[2]])[None], dtype=torch.float32)


def _predict_one(learner: Learner, past: Interactions, user_features: Any, piece: Piece) -> SlowPrediction:
    model = learner.model
    rows = learner.items.lookup(np.ascontiguousarray(past.item_hash))
    tokens: list[torch.Tensor] = []
    times: list[tuple[int, int]] = []
    for place, row in enumerate(rows.tolist()):
        item_M = learner.items.weight[row] @ model.item_weight + _side_row(learner, user_features, past, place)
        action_M = model.action_M + item_M @ model.action_item_weight
        for bit in range(len(learner.model_config.kinds)):
            if past.action_bits[place] >> bit & 1:
                action_M = action_M + model.kind_KM[bit]
        if learner.model_config.use_value and np.isfinite(value := float(past.value[place])):
            action_M = action_M + model.value_M[0] + np.sign(value) * np.log1p(abs(value)) * model.value_M[1]
        time = int(past.timestamp_ms[place])
        tokens += [item_M, action_M]
        times += [(time, time), (int(past.timestamp_ms[min(place + 1, len(past) - 1)]), time)]
    tokens, times = tokens[:-1], times[:-1]  # without the target's action, which is to be predicted
    asked, held = (torch.tensor(column) for column in zip(*times, strict=True))
    offsets = torch.tensor([0, len(tokens)])
    y_TM = model.encode(torch.stack(tokens), offsets, asked, held, backend="reference")
    before_M = y_TM[-2] if len(tokens) > 1 else model.start_M
    before = int(past.action_bits[-1]) & ~piece.bits
    return SlowPrediction(
        model.retrieval_query(before_M[None])[0].numpy(),
        torch.sigmoid(model.rank_logits(y_TM[-1:], prior_of(learner, past)))[0].double().numpy(),
        int(rows[-1]),
        bool(piece.bits) and not before,
        piece,
    )


def _side_row(learner: Learner, user_features: Any, past: Interactions, place: int) -> torch.Tensor:
    row = learner.domains.weight[learner.domains.lookup(past.domain_hash[place : place + 1])[0]]
    for feature in [*past.feature_hash[place].tolist(), *user_features.tolist()]:
        row = row + learner.features.weight[learner.features.lookup(np.array([feature]))[0]]
    return row
