"""The memory's part of a step: what it predicts and learns, and its outcomes in the order of the targets.

The memory counts new interactions, and predicts, counts and learns choices, one after the other, in the order of their
times. It mixes with the network's logits as they were before the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.beside import Beside
from kernels.memory import MemoryEvents, MemoryOutcome, Ranks
from kernels.transfer import to_device
from model.embedding import EmbeddingTable
from model.hstu import HSTU
from model.memory import MOST_LOGITS, Memory
from model.memory_events import listed_events
from model.share import Owners
from trainer.examples.batch import JaggedBatch
from trainer.examples.foreseen import Foreseen, Given
from trainer.learner.batch_rows import BatchRows
from trainer.learner.choice_ranking import ChoiceRanking
from trainer.metrics.evaluator import COMING, Forward
from trainer.network.choice_weights import EQUAL, ChoiceWeights

if TYPE_CHECKING:
    from kernels.memory.device import DeviceOutcome

Int64 = NDArray[np.int64]
EXACT_ROWS = 1 << 14
"""In a catalogue of up to this many rows, each choice is compared with all of them."""
ROWS_PER_SHARE = 1 << 11
"""In a larger catalogue, one choice in (rows / this) is, and as many rows are scored for it after each event until all
are (`trainer.learner.choice_ranking`), so the cost does not depend on the catalogue's size, nor does any step's."""
MOST_DEVICE_LOGITS = 1 << 28
"""How many of the network's logits are computed at a time if the memory is on a GPU: a gigabyte."""
MOST_PREDICTED_ROWS = 1 << 16
"""Where nothing is learned from a sample, every nth choice is predicted in a catalogue of n times as many rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some consecutive events, and the network's part for the choices to predict: logits over all rows (``logit_AV``),
    or the queries (``query_AD``) if the choices are learned from a sample of the rows; the first of these may also be
    ranked among all rows (``ranks_first``).

    Where the table is divided, the owners' logits stand with the queries: those of the rows that may be in samples, by
    choice (``given``: `kernels.memory.memory_learn_given`), and those of all rows for the first choice (``logit_V``).
    """

    events: MemoryEvents
    logit_AV: NDArray[np.float32] | None
    query_AD: NDArray[np.float32] | None = None
    ranks_first: bool = False
    given: Given | None = None
    logit_V: NDArray[np.float32] | None = None


class MemoryPass:
    """Passes of ``memory``, whose rows are those of ``items``.

    At most ``most_logits`` of the network's logits are computed at a time. In a catalogue of more than ``exact_rows``
    rows all choices are learned from a sample of the rows, and only a share is ranked among all. If the step computes
    all rows anyway, all choices are compared with them; if the table is on a GPU, a share is, and the others are only
    counted: see `MOST_PREDICTED_ROWS`. ``beside``: list the rows of large batches on a thread of their own.
    """

    def __init__(
        self,
        memory: Memory,
        items: EmbeddingTable,
        model: HSTU,
        *,
        most_logits: int = MOST_LOGITS,
        exact_rows: int = EXACT_ROWS,
        rows_per_share: int = ROWS_PER_SHARE,
        weights: ChoiceWeights = EQUAL,
        beside: bool = False,
    ) -> None:
        self._memory, self._items, self._model = memory, items, model
        self._most_logits, self.exact_rows, self._rows_per_share = most_logits, exact_rows, rows_per_share
        self._weights_of, self._beside = weights, Beside() if beside else None
        self.ranking = ChoiceRanking(memory, items, self._unit_width, rows_per_share)
        self._place: int | None = None
        """Where the choice that is being ranked stands among the events of the batch at hand; None: in none."""
        self._earlier: Ranks | None = None
        self._foreseen: Foreseen | None = None

    def rows_of(self, batch: JaggedBatch) -> BatchRows:
        """The rows of a batch whose own items have none yet."""
        return BatchRows(self._items, batch, self._model.config, self._beside)

    @torch.no_grad()
    def ask(self, batch: JaggedBatch, forward: Forward, rows: BatchRows, num_before: int) -> Iterator[Part]:
        """The batch's events with the network's part for the choices, in parts that fit.

        ``num_before``: interactions before the batch; decides which share of the choices is compared with all rows.
        """
        num_rows, told = self._items.num_rows, _told(batch)
        samples = self._items.weight.device.type == "cpu" and not forward.is_whole
        samples = samples and num_rows > self.exact_rows
        is_ranked_R = self._are_ranked(num_before + np.arange(len(told)), num_rows, samples=samples)
        query_R = (np.cumsum(batch.is_wanted_R) - 1)[told]
        if samples:
            yield from self._ask_samples(batch, forward.query_SD.numpy(), query_R, rows, is_ranked_R)
            return
        events = self._events(batch, told, rows)
        events.chosen_R[~is_ranked_R] *= 2
        logits, device = self._there(forward, num_rows), forward.query_SD.device
        size = max(1, self._most_logits // num_rows)
        for start in range(0, len(told), size):
            part = slice(start, start + size)
            asked = query_R[part][events.chosen_R[part] == 1]
            yield Part(events[part], logits(to_device(asked, device)).cpu().numpy())

    def _ask_samples(
        self, batch: JaggedBatch, query_SD: NDArray[np.float32], query_R: Int64, rows: BatchRows,
        is_ranked_R: NDArray[np.bool_],
    ) -> Iterator[Part]:  # fmt: skip
        """The parts if choices are learned from a sample of the rows."""
        known = self._known(batch, rows)
        events = self._events(batch, _told(batch), rows) if known is None else known.events
        is_asked_R = events.chosen_R == 1
        is_ranked_R, query_AD = is_ranked_R & is_asked_R, query_SD[query_R[is_asked_R]]
        is_ranked_A, most_ranked = is_ranked_R[is_asked_R], self._most_logits // self._items.num_rows
        given_of = None if known is None else known.ask(query_AD, is_ranked_A, most_ranked, self._unit_width)
        for part in _parts(is_ranked_R):
            ranks_first = bool(is_ranked_R[part.start])
            first, last = (int(np.count_nonzero(is_asked_R[:end])) for end in (part.start, part.stop))
            given, logit_V = (None, None) if given_of is None else given_of(first, last)
            yield Part(events[part], None, query_AD[first:last], ranks_first, given, logit_V if ranks_first else None)

    def foresee(self, batch: JaggedBatch, rows: BatchRows) -> None:
        """Where others hold rows: do what `ask` does before it reads the predictions, while others compute these."""
        if self._items.owners is not None:
            self._foreseen = self._listed(self._items.owners, batch, rows)

    def _known(self, batch: JaggedBatch, rows: BatchRows) -> Foreseen | None:
        known, self._foreseen = self._foreseen, None
        if (owners := self._items.owners) is None or (known is not None and known.batch is batch):
            return known
        return self._listed(owners, batch, rows)

    def _listed(self, owners: Owners, batch: JaggedBatch, rows: BatchRows) -> Foreseen:
        """The rows that may be in any sample, whichever neighbours earlier events of the batch add."""
        events = self._events(batch, _told(batch), rows)
        row, begin_A1 = self._memory.candidates(events)
        return Foreseen(batch, events, owners, row, begin_A1, owners.listed(row, begin_A1))

    def _events(self, batch: JaggedBatch, told: Int64, rows: BatchRows) -> MemoryEvents:
        """These targets as the memory's events; the memory grows to hold their rows."""
        self._memory.grow(self._items.num_rows)
        where_R, (rows_n, lists) = batch.target_R[told], rows.listed()
        return listed_events(
            lists, lists.bounds_6R.take(told, axis=1), rows_n[where_R], batch.time_ms_n[where_R],
            batch.is_wanted_R[told], self._weights(batch, told), self._memory.groups_of(batch.feature_nF[where_R]),
        )  # fmt: skip

    def _weights(self, batch: JaggedBatch, told: Int64) -> NDArray[np.float32] | None:
        """(told,) how much each choice counts; None if all count alike."""
        if not self._weights_of.differ:
            return None
        weight_R, chosen = np.ones(len(told), np.float32), batch.is_wanted_R[told]
        weight_R[chosen] = self._weights_of.over(batch, told[chosen])
        return weight_R

    @torch.no_grad()
    def launch(self, batch: JaggedBatch, forward: Forward, rows: BatchRows) -> Launched:
        """Have a memory on a GPU predict, count and learn the batch, comparing each choice with all rows. Does not wait
        for it. Arguments as for `ask`."""
        num_rows, told = self._items.num_rows, _told(batch)
        events = self._events(batch, told, rows)
        query_R = (np.cumsum(batch.is_wanted_R) - 1)[told]
        logits_of = self._there(forward, num_rows)
        size, done = max(1, MOST_DEVICE_LOGITS // num_rows), []
        for start in range(0, len(told), size):
            part = slice(start, start + size)
            asked = to_device(query_R[part][events.chosen_R[part] == 1], forward.query_SD.device)
            some = events if size >= len(told) else events[part]
            done.append(self._memory.learn_together(some, logits_of(asked)))
        return Launched(_order(batch, told), done, events, self._memory)

    def _are_ranked(self, number_R: Int64, num_rows: int, *, samples: bool) -> NDArray[np.bool_]:
        """Which of these events are compared with all rows."""
        if samples:
            return np.asarray(number_R % -(-num_rows // self._rows_per_share) == 0)
        is_here = self._items.weight.device.type == "cpu" and num_rows <= self.exact_rows
        return np.asarray(number_R % (1 if is_here else -(-num_rows // MOST_PREDICTED_ROWS)) == 0)

    def _there(self, forward: Forward, num_rows: int) -> Callable[[Tensor], Tensor]:
        """The network's logits of some of the choices, over the whole catalogue, on its device."""
        known_SV = forward.logit_SV
        if known_SV is not None:
            return lambda asked: known_SV[asked]
        rows_VD = self._items.weight[:num_rows]
        known_VD = forward.table_UD if forward.is_whole else self._model.retrieval_table(rows_VD.float())
        return lambda asked: forward.query_SD[asked] @ known_VD.T

    @property
    def _unit_width(self) -> int:
        return self._model.config.item_width - 1

    def answer(self, batch: JaggedBatch, parts: Iterable[Part]) -> MemoryOutcome:
        """Predict, count and learn what `ask` returned; the outcomes of the choices, in the order of the targets.

        A choice of an item that its user has met is a miss where such items are left out, since no server recommends it
        (it is learned all the same). One that was learned from a sample has neither rank nor loss: those within a
        sample would flatter. One that is ranked among all rows has `COMING` if that is not known yet: see
        `take_earlier`.
        """
        self._place, done, ranks_at = None, list[MemoryOutcome](), dict[int | None, Ranks]()
        for part in parts:
            if self.ranking.is_begun and (part.ranks_first or part.logit_AV is not None):
                ranks_at[self._place] = self.ranking.end()
            if part.ranks_first:
                self._place = sum(len(each.loss_R) for each in done)
                self._begin(part, ranks_at)
            done.append(self._learn(part))
            if self.ranking.is_scored:
                ranks_at[self._place] = self.ranking.end()
        self._earlier = ranks_at.pop(None, None)
        outcome = MemoryOutcome.join(done)
        for place, ranks in ranks_at.items():
            assert place is not None
            outcome.put(place, ranks)
        if self.ranking.is_begun and self._place is not None:
            outcome.rank_R[self._place] = COMING
        return outcome.ordered(_order(batch, _told(batch)))

    def take_earlier(self) -> Ranks | None:
        """The ranks of a choice of an earlier batch, if they came with the last one."""
        earlier, self._earlier = self._earlier, None
        return earlier

    def _begin(self, part: Part, ranks_at: dict[int | None, Ranks]) -> None:
        """Begin to rank the part's first choice; one that was never met is a miss, and so is one that is left out."""
        assert part.query_AD is not None
        target, is_left_out = int(part.events.target_R[0]), self._memory.leaves_out and part.events.is_repeat_R[0]
        if target and self._memory.arrays.first[target] >= 0 and not is_left_out:
            self.ranking.begin(part.events[:1], part.query_AD[0], part.logit_V)
        else:
            ranks_at[self._place] = Ranks(0, 0, 0, math.nan)

    def _learn(self, part: Part) -> MemoryOutcome:
        if part.logit_AV is not None:
            return self._memory.learn(part.events, part.logit_AV)
        outcome = self.ranking.beside(part.events, lambda: self._learn_sampled(part))
        return replace(outcome, loss_R=np.full_like(outcome.loss_R, np.nan))

    def _learn_sampled(self, part: Part) -> MemoryOutcome:
        if part.given is not None:
            return self._memory.learn_given(part.events, *part.given)
        assert part.query_AD is not None
        return self._memory.learn_sampled(part.events, part.query_AD, self._items.store.array, self._unit_width)


@dataclass(frozen=True, slots=True, eq=False)
class Launched:
    """A batch's outcomes on their way from a GPU."""

    order_S: Int64
    """The choices' places among the events, in the order of the targets."""
    parts: list[DeviceOutcome]
    events: MemoryEvents
    memory: Memory

    def wait(self) -> MemoryOutcome:
        """The outcomes of the choices, in the order of the targets."""
        outcome = MemoryOutcome.join([part.wait() for part in self.parts])
        return (outcome.missed(self.events.is_repeat_R) if self.memory.leaves_out else outcome).ordered(self.order_S)


def _order(batch: JaggedBatch, told: Int64) -> Int64:
    """Places of the choices among the events (`_told`), in the order of the targets."""
    wanted = batch.is_wanted_R[told]
    return np.flatnonzero(wanted)[np.argsort(told[wanted])]


def _parts(is_ranked_R: NDArray[np.bool_]) -> Iterator[slice]:
    """Consecutive events, of which at most the first is ranked."""
    starts = [0, *np.flatnonzero(is_ranked_R).tolist(), len(is_ranked_R)]
    yield from (slice(start, end) for start, end in pairwise(starts) if start < end)


def _told(batch: JaggedBatch) -> Int64:
    """Indices of the targets that concern the memory, new interactions and choices, in the order of their times."""
    told = np.flatnonzero(batch.is_new_R | batch.is_wanted_R)
    return told[np.argsort(batch.time_ms_n[batch.target_R[told]], kind="stable")]
