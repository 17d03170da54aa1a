"""What late feedback costs, and how much of that each method of learning it recovers.

A simulated world (`stream.simulate`) knows the final outcome of every impression. A model is trained up to some moment
with all outcomes known. From then on, copies of it continue with the stream as it arrives, each learning late kinds
with its own method. Each copy predicts every new interaction when it arrives, before learning anything from it, and is
scored against the final outcome. 0% is the model that stops learning at that moment, 100% the one that learns all
outcomes immediately.

``fnc`` is ``vanilla`` with its predictions corrected (Ktena et al., RecSys 2019): nothing else is learned. ``wait``
learns an interaction a minute after it began (`trainer.examples.waiting`). ``es-dfm`` weights by how much of
a kind arrives late (after Yang et al., "Capturing delayed feedback in conversion rate prediction via elapsed-time
sampling", AAAI 2021, with the share itself in place of their two side models). ``defer`` learns every interaction
twice, at once and after a minute, and weights both (after Gu et al., "Real negatives matter", KDD 2021).

Two worlds: in ``quick``, clicks arrive within seconds, and 2% of all feedback a hundred times later; in ``late``, a
third of the feedback is late, and items live for half an hour.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from bench.streams.simulated import MODEL, WORLDS, steps
from bench.timing import Row, row
from headrace.ledger import empty_history
from kernels.transfer import ToHost
from kernels.windows import unpack_kinds
from model.rates import probability
from stream.simulate import KINDS
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.snapshot import learner_arrays, restore_learner
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch, build_batch
from trainer.examples.waiting import Waiting
from trainer.learner.step import Learner
from trainer.metrics.kinds import binary_log_loss
from wire.example import Example
from wire.history import Histories, History

WAIT_MS = 60_000
LEARNED = ("vanilla", "fnw", "reversal")
BIASED = "vanilla"
"""Whose predictions ``fnc`` corrects."""
WAITING = ("wait", "wait, reversal")
MEASURED = ("click", "like")
SERVED, NETWORK = "", " (network)"
"""Whose predictions are scored, as the names of metrics say it."""
AGE = "age of the newest record learned, at the end"
Floats = NDArray[np.float64]


@dataclass(slots=True)
class FullHistories:
    """The complete histories of users, as they are now."""

    users: dict[str, History] = field(default_factory=dict)

    def fold(self, examples: list[Example]) -> None:
        """Add a step's examples."""
        for each in examples:
            self.users.setdefault(each.user, empty_history(each)).fold(each)

    def bits(self, user: str, places: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The kinds of these interactions."""
        history = self.users[user]
        return history.window(0, history.end)[1]["bits"][places]

    def told(self, like: Example, first_new: int, end: int) -> Iterator[Example]:
        """Examples that deliver interactions ``first_new`` … ``end - 1`` of a user, with the kinds that they have
        here."""
        none, length = np.empty(0, np.int64), like.segment_len
        while first_new < end:
            segment = first_new // length
            stop = min(end, (segment + 1) * length)
            rows = self.users[like.user].rows(segment * length, stop)
            yield replace(
                like, segment=segment, rows=rows, num_new=stop - first_new, feedback_index=none,
                feedback_bits=np.empty(0, np.uint32), session_hash=np.zeros(len(rows), np.int64),
            )  # fmt: skip
            first_new = stop


class Second:
    """Delivers interactions `WAIT_MS` after they began."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, Example]] = deque()

    def feed(self, examples: list[Example], histories: FullHistories) -> list[Example]:
        """The interactions that are due, in their present state."""
        now_ms = max((each.newest_event_ms for each in examples), default=0)
        self._queue.extend((int(each.interactions.timestamp_ms[-1]), each) for each in examples if each.num_new)
        due = list[Example]()
        while self._queue and self._queue[0][0] + WAIT_MS <= now_ms:
            each = self._queue.popleft()[1]
            due += histories.told(each, each.first_new_index, each.first_new_index + each.num_new)
        return due


class Importance(Learner):
    """Weights 1s and 0s to correct for those seen too often: of the kinds, ``share_K`` arrive late."""

    share_K: Floats = np.zeros(len(KINDS))
    seen_twice = False

    def _direct_step(self) -> None:
        """None: this learner's loss is another one."""

    def _ranking_loss(self, batch: JaggedBatch, logits_RK: torch.Tensor) -> torch.Tensor:
        """`trainer.network.losses.ranking_loss`, with a weight for each 1 and each 0."""
        p_RK = torch.sigmoid(logits_RK.detach())
        late_RK = p_RK * torch.from_numpy(self.share_K).float()
        if self.seen_twice:  # first without late kinds, then with them
            one_RK = p_RK / (p_RK - late_RK / 2)
            zero_RK = (1 - p_RK) / (1 - p_RK + late_RK / 2)
        else:  # a late kind is first a 0, then a 1
            one_RK = 1 + late_RK
            zero_RK = (1 - p_RK) * (1 + late_RK) / (1 - p_RK + late_RK)
        positive_RK = torch.nn.functional.softplus(-logits_RK)
        kinds_RK, is_new_R = self._tensor(batch.learned_RK), self._tensor(batch.is_new_R)
        first_RK = torch.where(kinds_RK > 0, one_RK * positive_RK, zero_RK * (positive_RK + logits_RK))
        return torch.where(is_new_R[:, None], first_RK, one_RK * positive_RK * kinds_RK).sum(dim=1)


def copy_of(learner: Learner, config: TrainerConfig, kind: type[Learner] = Learner) -> Learner:
    """A copy of a learner, which continues with its own method."""
    other = kind(learner.model_config, config)
    meta = {"model": MODEL.as_dict(), "trainer": config.learning_dict()}
    arrays = {name: array.copy() for name, array in learner_arrays(learner).items()}
    restore_learner(other, Checkpoint(learner.num_steps, arrays, meta))
    other.histories = copy.deepcopy(learner.histories)
    return other


@torch.no_grad()
def predicted(learner: Learner, batch: JaggedBatch) -> dict[str, Floats]:
    """(new, K) probabilities of the new interactions' kinds: as a server says them, and the network's own."""
    forward = learner.forward(batch, learner.newest_event_ms)
    logits_RK = forward.logits_RK.detach()
    events = learner.scoring.ranking_pass.ask(batch, forward.target_row_R, ToHost(logits_RK))
    served_RK = probability(learner.rates.score(events))
    network_RK = torch.sigmoid(logits_RK).double().numpy()
    return {SERVED: served_RK[batch.is_new_R], NETWORK: network_RK[batch.is_new_R]}


def without_feedback(examples: list[Example]) -> list[Example]:
    """The new interactions of these examples."""
    none, no_bits = np.empty(0, np.int64), np.empty(0, np.uint32)
    return [replace(each, feedback_index=none, feedback_bits=no_bits) for each in examples]


def since(ends: dict[str, int], examples: list[Example]) -> list[Example]:
    """These examples without feedback to interactions before their user's ``ends``, whose outcomes are known."""
    kept = [each.first_index + each.feedback_index >= ends.get(each.user, 0) for each in examples]
    return [
        replace(each, feedback_index=each.feedback_index[keep], feedback_bits=each.feedback_bits[keep])
        for each, keep in zip(examples, kept, strict=True)
    ]


def late_share(every: list[list[Example]]) -> Floats:
    """(K,) the share of each kind that arrived for an earlier interaction."""
    late_K, all_K = np.zeros(len(KINDS)), np.full(len(KINDS), 1e-9)
    for each in (each for examples in every for each in examples):
        late = unpack_kinds(each.feedback_bits, len(KINDS)).sum(axis=0)
        new = each.interactions.action_bits[len(each.interactions) - each.num_new :]
        late_K, all_K = late_K + late, all_K + late + unpack_kinds(new, len(KINDS)).sum(axis=0)
    return np.asarray(late_K / all_K)


def measure(num_actions: int, seed: int, world: str = "quick") -> dict[str, dict[str, float]]:
    """By method, as served and (in brackets) its network alone: NE over all kinds, and AUC of `MEASURED`, over the last
    70% of the stream."""
    every = list(steps(num_actions, seed, world))
    final, now, second = FullHistories(), FullHistories(), Second()
    for examples in every:
        final.fold(examples)
    config = TrainerConfig(device="cpu", feedback="vanilla", metric_window=1)
    begun = len(every) * 3 // 10
    pretrained, context = Learner(MODEL, config), Histories(MODEL.max_context)
    for examples in every[:begun]:
        now.fold(examples)
        if outcomes := _outcomes(examples, final):
            pretrained.step(outcomes)
        for each in examples:
            context.fold(each)
    ends = {user: history.end for user, history in now.users.items()}
    learners = {name: copy_of(pretrained, config) for name in ("stopped", "told at once", "wait")}
    learners |= {name: copy_of(pretrained, replace(config, feedback=name)) for name in LEARNED}
    learners["wait, reversal"] = copy_of(pretrained, replace(config, feedback="reversal"))
    for name in WAITING:
        learners[name].histories.waiting = Waiting(WAIT_MS, MODEL.max_context)
    share_K = late_share(every[:begun])
    for name in ("es-dfm", "defer"):
        weighing = copy_of(pretrained, config, Importance)
        assert isinstance(weighing, Importance)
        weighing.share_K, weighing.seen_twice = share_K, name == "defer"
        learners[name] = weighing
    said: dict[str, list[dict[str, Floats]]] = {name: [] for name in learners}
    came: list[NDArray[np.uint32]] = []
    for examples in every[begun:]:
        now.fold(examples)
        batch = build_batch(examples, context, MODEL)
        came += [final.bits(each.user, np.arange(each.num_new) + each.first_new_index) for each in _by_user(examples)]
        for name, learner in learners.items():
            said[name].append(predicted(learner, batch))
        streams = dict.fromkeys((*LEARNED, *WAITING, "es-dfm"), since(ends, examples))
        streams["told at once"] = _outcomes(examples, final)
        streams["defer"] = without_feedback(examples) + second.feed(examples, now)
        for name, told in streams.items():
            if told:
                learners[name].step(told)
    kinds_RK = unpack_kinds(np.concatenate(came), len(KINDS))
    newest_ms, found = max(each.newest_record_ms for each in every[-1]), dict[str, dict[str, float]]()
    for name, parts in said.items():
        found[name] = {AGE: (newest_ms - learners[name].newest_record_ms) / 1000}
        for whose in (SERVED, NETWORK):
            metrics = _metrics(np.concatenate([part[whose] for part in parts]), kinds_RK)
            found[name] |= {f"{metric}{whose}": value for metric, value in metrics.items()}
    biased = np.concatenate([part[NETWORK] for part in said[BIASED]])
    corrected = _metrics(np.clip(biased / np.maximum(1 - biased, 1e-6), 1e-6, 1 - 1e-6), kinds_RK)
    found["fnc"] = {f"{metric}{NETWORK}": value for metric, value in corrected.items()}
    return found


def _outcomes(examples: list[Example], final: FullHistories) -> list[Example]:
    """The new interactions with their final outcomes, and nothing later."""
    return [
        told for each in examples if each.num_new
        for told in final.told(each, each.first_new_index, each.first_new_index + each.num_new)
    ]  # fmt: skip


def _by_user(examples: list[Example]) -> list[Example]:
    """The users in the order of their new interactions in a batch."""
    users: dict[str, list[Example]] = {}
    for each in examples:
        if each.num_new or each.num_feedback:
            users.setdefault(each.user, []).append(each)
    return [each for several in users.values() for each in sorted(several, key=lambda one: one.first_new_index)]


def _metrics(probability_RK: Floats, kinds_RK: NDArray[np.float32]) -> dict[str, float]:
    loss = entropy = 0.0
    found = {}
    for kind, name in enumerate(KINDS):
        done, chance = kinds_RK[:, kind] > 0, probability_RK[:, kind]
        rate = float(done.mean())
        if 0 < rate < 1:
            loss += float(binary_log_loss(chance, done).sum())
            entropy -= len(done) * (rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        if name in MEASURED:
            found[f"AUC of {name}"] = _auc(chance, done)
            found[f"mean probability of {name} over its rate"] = float(chance.mean()) / rate
    return {"NE": loss / entropy, **found}


def _auc(score: Floats, done: NDArray[np.bool_]) -> float:
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    num = int(done.sum())
    return float((rank[done].sum() - num * (num + 1) / 2) / (num * (len(done) - num)))


def run(quick: bool = False) -> list[Row]:
    """The rows of the report: means over seeds, with standard errors."""
    torch.set_num_threads(1)
    seeds = range(1 if quick else 4)
    return [
        each
        for world in WORLDS
        for each in rows_of(world, [measure(6_000 if quick else 40_000, seed, world) for seed in seeds])
    ]


def rows_of(world: str, runs: list[dict[str, dict[str, float]]]) -> list[Row]:
    """The rows of one world. Standard errors are of the difference from `told at once`, paired by seed."""
    rows = []
    for name in runs[0]:
        for metric in runs[0][name]:
            values, best, worst = (
                np.array([each[which][metric] for each in runs]) for which in (name, "told at once", "stopped")
            )
            note = ""
            if metric.startswith(("NE", "AUC")):
                error = float(np.std(values - best, ddof=1) / np.sqrt(len(runs))) if len(runs) > 1 else float("nan")
                won = (values.mean() - worst.mean()) / (best.mean() - worst.mean())
                note = (
                    f"{100 * won:.0f}% of the distance; {values.mean() - best.mean():+.4f} ± {error:.4f} from its end"
                )
            rows.append(row(f"{world}, {name}: {metric}", float(values.mean()), "s" * (metric == AGE), note=note))
    return rows
