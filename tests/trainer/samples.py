"""Small streams of examples, small learners, and the slow ways to know what they must say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import ModelConfig
from trainer.batch import JaggedBatch, build_batch
from trainer.checkpoint import Checkpoint
from trainer.config import TrainerConfig
from trainer.metrics import Predictions
from trainer.snapshot import learner_arrays, restore_learner
from trainer.step import Learner
from wire.example import Example, Interactions
from wire.example_codec import no_interactions

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


def example(
    sealed: Interactions, num_new: int, *, user: str = "u", number: int = 0, partition: int = 0, first_new: int = 0,
    user_feature: int = 0, names: dict[int, str | int] | None = None,
) -> Example:  # fmt: skip
    """An example of these interactions; what restores a worker is left empty."""
    newest_ms = int(sealed.timestamp_ms[-1])
    return Example(
        user=user,
        partition=partition,
        writer_epoch=1,
        number=number,
        interactions=sealed,
        num_new=num_new,
        first_new_index=first_new,
        open_interactions=no_interactions(),
        open_first_offsets=np.empty(0, np.int64),
        recent_ids=np.empty(0, np.int64),
        user_feature_hash=np.array([user_feature], np.int64),
        user_offset=number,
        applied_offset=number,
        replay_from_offset=number + 1,
        clock_ms=newest_ms,
        newest_event_ms=newest_ms,
        newest_record_ms=newest_ms + 5,
        names=names or {},
    )


def cut(interactions: Interactions, part: slice) -> Interactions:
    """Some of the interactions."""
    return Interactions(*(getattr(interactions, name)[part] for name in Interactions.__dataclass_fields__))


@dataclass
class World:
    """Users with lives; `examples` cuts the next ones, as the worker would."""

    seed: int = 0
    num_users: int = 6
    num_items: int = 30
    max_context: int = 10
    number: int = 0
    done: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._lives = [columns(self._rng, 400, self.num_items) for _ in range(self.num_users)]

    def examples(self, num: int, *, max_new: int = 4) -> list[Example]:
        """The next examples, of users at random; about one in eight has nothing new."""
        return [self._next(max_new) for _ in range(num)]

    def _next(self, max_new: int) -> Example:
        user = int(self._rng.integers(self.num_users))
        done = self.done.get(user, 0)
        num_new = int(self._rng.integers(1, max_new + 1)) if not done or self._rng.random() > 0.125 else 0
        sealed = cut(self._lives[user], slice(max(0, done - self.max_context - 2), done + num_new))
        self.done[user], number = done + num_new, self.number
        self.number += 1
        names: dict[int, str | int] = {int(item): f"item {item}" for item in sealed.item_hash[len(sealed) - num_new :]}
        return example(sealed, num_new, user=f"user {user}", number=number, first_new=done, user_feature=user % 3,
                       names=names)  # fmt: skip


def taught(
    config: TrainerConfig = TRAINER, model: ModelConfig = MODEL, *, num_steps: int = 4, seed: int = 0
) -> tuple[Learner, World]:
    """A learner some steps into a world, and the world."""
    world, learner = World(seed), Learner(model, config)
    for _ in range(num_steps):
        learner.step(world.examples(8))
    return learner, world


def twin(learner: Learner, kind: type[Learner] = Learner) -> Learner:
    """Another learner with the same state, sharing nothing with the first."""
    arrays = {name: array.copy() for name, array in learner_arrays(learner).items()}
    other = kind(learner.model_config, learner.config, learner.device)
    meta = {"model": learner.model_config.as_dict(), "trainer": learner.config.learning_dict()}
    restore_learner(other, Checkpoint(learner.num_steps, arrays, meta))
    return other


def predictions_of(learner: Learner, examples: Sequence[Example]) -> Predictions:
    """What a step predicts (and then learns, in ``learner``)."""
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
    """Bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if not _same_bits(left[name], right[name])]
    assert not different, f"different: {different}"


def _same_bits(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@dataclass(frozen=True)
class SlowPrediction:
    """One target: query (D,), probabilities (K,), and its row at prediction, 0 if unknown."""

    query_D: NDArray[np.float32]
    probability_K: NDArray[np.float64]
    row: int


@torch.no_grad()
def predict_slowly(learner: Learner, each: Example) -> list[SlowPrediction]:
    """The new interactions of one user, one by one, each from its past alone; nothing jagged, nothing fused.

    For worlds whose domains and features the learner knows already: a step gives new ones their first rows.
    """
    config, total = learner.model_config, len(each.interactions)
    first = max(0, total - each.num_new - config.max_context)
    return [_predict_one(learner, each, first, index) for index in range(total - each.num_new, total)]


def _predict_one(learner: Learner, each: Example, first: int, index: int) -> SlowPrediction:
    past, model = cut(each.interactions, slice(first, index + 1)), learner.model
    rows = learner.items.lookup(past.item_hash)
    tokens: list[torch.Tensor] = []
    times: list[tuple[int, int]] = []
    for place, row in enumerate(rows.tolist()):
        item_M = learner.items.weight[row] @ model.item_weight + _side_row(learner, each, past, place)
        action_M = model.action_M + item_M @ model.action_item_weight
        for bit in range(len(learner.model_config.kinds)):
            if past.action_bits[place] >> bit & 1:
                action_M = action_M + model.kind_KM[bit]
        if learner.model_config.use_value and np.isfinite(value := float(past.value[place])):
            action_M = action_M + model.value_M[0] + np.sign(value) * np.log1p(abs(value)) * model.value_M[1]
        time = int(past.timestamp_ms[place])
        tokens += [item_M, action_M]
        times += [(time, time), (int(past.timestamp_ms[min(place + 1, len(past) - 1)]), time)]
    tokens, times = tokens[:-1], times[:-1]  # the target's action is what is asked
    asked, held = (torch.tensor(column) for column in zip(*times, strict=True))
    offsets = torch.tensor([0, len(tokens)])
    y_TM = model.encode(torch.stack(tokens), offsets, asked, held, backend="reference")
    before_M = y_TM[-2] if len(tokens) > 1 else model.start_M
    return SlowPrediction(
        model.retrieval_query(before_M[None])[0].numpy(),
        torch.sigmoid(model.rank_logits(y_TM[-1:]))[0].double().numpy(),
        int(rows[-1]),
    )


def _side_row(learner: Learner, each: Example, past: Interactions, place: int) -> torch.Tensor:
    row = learner.domains.weight[learner.domains.lookup(past.domain_hash[place : place + 1])[0]]
    for feature in [*past.feature_hash[place].tolist(), *each.user_feature_hash.tolist()]:
        row = row + learner.features.weight[learner.features.lookup(np.array([feature]))[0]]
    return row


def leaking(leak: Callable[[JaggedBatch], JaggedBatch]) -> Callable[[Sequence[Example], ModelConfig], JaggedBatch]:
    """A batch builder that is wrong by ``leak``."""
    return lambda examples, config: leak(build_batch(examples, config))
