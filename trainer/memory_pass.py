"""The memory's part of a step: what it predicts and learns, and its outcomes in the order of the targets.

The memory counts new interactions, and predicts, counts and learns choices, one after the other, in the order of their
times. It mixes with the network's logits as they were before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory import MemoryEvents, MemoryOutcome, memory_logits
from kernels.transfer import to_device
from model.embedding import EmbeddingTable
from model.hstu import HSTU
from model.memory import MOST_LOGITS, Memory
from model.memory_events import events_of
from model.share import Listed, Owners
from trainer.batch import JaggedBatch
from trainer.choice_weights import EQUAL, ChoiceWeights
from trainer.evaluator import Forward

if TYPE_CHECKING:
    from kernels.memory.device import DeviceOutcome

Int64 = NDArray[np.int64]
Given = tuple[NDArray[np.int32], Int64, NDArray[np.float32]]
EXACT_ROWS = 1 << 14
"""In a catalogue of up to this many rows, each choice is compared with all of them."""
ROWS_PER_SHARE = 1 << 11
"""In a larger catalogue, one choice in (rows / this) is, so that their average cost does not depend on its size."""
EXACT_TOGETHER, MOST_ROWS_TOGETHER = 4, 1 << 19
"""They are this many in a row, which share the work on all rows, as long as they have at most so many rows together:
above half a million rows each is alone, so that no step takes much longer than the others."""
MOST_DEVICE_LOGITS = 1 << 28
"""How many of the network's logits are computed at a time if the memory is on a GPU: a gigabyte."""
MOST_PREDICTED_ROWS = 1 << 16
"""Where nothing is learned from a sample, every nth choice is predicted in a catalogue of n times as many rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some consecutive events, and the network's part for the choices to predict: logits over all rows (``logit_AV``).
    If the choices are learned from a sample of the rows: the queries (``query_AD``), or where the table is divided the
    logits of the rows that may be in the sample, by choice (``given``: `kernels.memory.memory_learn_given`)."""

    events: MemoryEvents
    logit_AV: NDArray[np.float32] | None
    query_AD: NDArray[np.float32] | None = None
    given: Given | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Foreseen:
    """What is known of a batch's events before their predictions: which are compared with all rows, and which rows may
    be in the samples of the others (`kernels.memory.memory_candidates`), by owner too."""

    batch: JaggedBatch
    events: MemoryEvents
    is_exact_R: NDArray[np.bool_]
    row: NDArray[np.int32]
    begin_B1: Int64
    listed: Listed


class MemoryPass:
    """Passes of ``memory``, whose rows are those of ``items``.

    At most ``most_logits`` of the network's logits are computed at a time. In a catalogue of more than ``exact_rows``
    rows only a share of the choices is compared with all rows, and ranked; the others are learned from a sample of the
    rows. If the step computes all rows anyway, all choices are compared; if the table is on a GPU, the others are only
    counted: see `MOST_PREDICTED_ROWS`.
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
    ) -> None:
        self._memory, self._items, self._model = memory, items, model
        self._most_logits, self.exact_rows, self._rows_per_share = most_logits, exact_rows, rows_per_share
        self._weights_of = weights
        self._foreseen: Foreseen | None = None

    @torch.no_grad()
    def ask(self, batch: JaggedBatch, forward: Forward, seen_rows_n: Int64, num_before: int) -> Iterator[Part]:
        """The batch's events with the network's part for the choices, in parts that fit.

        ``seen_rows_n``: the items' rows before the batch. ``num_before``: interactions before it; decides which share
        of the choices is compared with all rows.
        """
        num_rows, told = self._items.num_rows, _told(batch)
        query_R = (np.cumsum(batch.is_wanted_R) - 1)[told]
        samples = self._items.weight.device.type == "cpu" and not forward.is_whole
        is_exact_R = self._are_exact(num_before + np.arange(len(told)), num_rows, samples=samples)
        size = max(1, self._most_logits // num_rows)
        if samples and (owners := self._items.owners) is not None:
            known, self._foreseen = self._foreseen, None
            if known is None or known.batch is not batch:
                known = self._listed(owners, batch, seen_rows_n, num_before)
            yield from self._ask_owners(owners, known, _runs(is_exact_R, size), query_R, forward.query_SD.numpy())
            return
        events = self._events(batch, told, seen_rows_n)
        if not samples:
            events.chosen_R[~is_exact_R] *= 2
            is_exact_R[:] = True
        logits = self._logits(forward, num_rows, samples=samples)
        for part in _runs(is_exact_R, size):
            asked = query_R[part][events.chosen_R[part] == 1]
            if is_exact_R[part.start]:
                yield Part(events[part], logits(asked))
            else:
                yield Part(events[part], None, forward.query_SD[torch.from_numpy(asked)].numpy())

    def foresee(self, batch: JaggedBatch, seen_rows_n: Int64, num_before: int) -> None:
        """Where others hold rows: do what `ask` does before it reads the predictions, while others compute these."""
        if self._items.owners is not None:
            self._foreseen = self._listed(self._items.owners, batch, seen_rows_n, num_before)

    def _listed(self, owners: Owners, batch: JaggedBatch, seen_rows_n: Int64, num_before: int) -> Foreseen:
        """The rows that may be in any sample, whichever neighbours earlier events of the batch add."""
        told = _told(batch)
        events = self._events(batch, told, seen_rows_n)
        is_exact_R = self._are_exact(num_before + np.arange(len(told)), self._items.num_rows, samples=True)
        is_counted_R = (events.chosen_R == 1) & is_exact_R
        counted = replace(events, chosen_R=np.where(is_counted_R, 2, events.chosen_R).astype(np.uint8))
        row, begin_B1 = self._memory.candidates(counted)
        return Foreseen(batch, events, is_exact_R, row, begin_B1, owners.listed(row, begin_B1))

    def _ask_owners(
        self, owners: Owners, known: Foreseen, parts: Iterable[slice], query_R: Int64, query_SD: NDArray[np.float32]
    ) -> Iterator[Part]:
        """The parts if others hold rows, which are asked for all logits in one message: those of rows that may be in
        samples, and those of all rows unless they are too many."""
        events, begin_B1 = known.events, known.begin_B1
        exact_R, sampled_R = ((events.chosen_R == 1) & each for each in (known.is_exact_R, ~known.is_exact_R))
        fits = np.count_nonzero(exact_R) * self._items.num_rows <= self._most_logits
        early, some = query_SD[query_R[exact_R & fits]], query_SD[query_R[sampled_R]]
        logit_AV, logit = owners.both_logits(early, some, known.listed, self._unit_width)
        for part in parts:
            if known.is_exact_R[part.start]:
                first, last = (np.count_nonzero(exact_R[:end]) for end in (part.start, part.stop))
                late = query_SD[query_R[part][exact_R[part]]]
                yield Part(events[part], logit_AV[first:last] if fits else owners.logits(late, self._unit_width))
            else:
                first, last = (np.count_nonzero(sampled_R[:end]) for end in (part.start, part.stop))
                start, stop = begin_B1[[first, last]]
                given = known.row[start:stop], begin_B1[first : last + 1] - start, logit[start:stop]
                yield Part(events[part], None, given=given)

    def _events(self, batch: JaggedBatch, told: Int64, seen_rows_n: Int64) -> MemoryEvents:
        """These targets as the memory's events; the memory grows to hold their rows."""
        self._memory.grow(self._items.num_rows)
        rows_n, unseen = seen_rows_n.copy(), np.flatnonzero(seen_rows_n == 0)
        rows_n[unseen] = self._items.lookup(batch.item_n[unseen])
        return events_of(
            rows_n, batch.bits_n, batch.time_ms_n, batch.starts_B1, batch.owner_n[batch.target_R[told]],
            batch.target_R[told], batch.time_ms_n[batch.target_R[told]], self._model.config,
            is_chosen_R=batch.is_wanted_R[told], weight_R=self._weights(batch, told),
            group_RC=self._memory.groups_of(batch.feature_nF[batch.target_R[told]]),
        )  # fmt: skip

    def _weights(self, batch: JaggedBatch, told: Int64) -> NDArray[np.float32] | None:
        """(told,) how much each choice counts; None if all count alike."""
        if not self._weights_of.differ:
            return None
        weight_R, chosen = np.ones(len(told), np.float32), batch.is_wanted_R[told]
        weight_R[chosen] = self._weights_of.over(batch, told[chosen])
        return weight_R

    @torch.no_grad()
    def launch(self, batch: JaggedBatch, forward: Forward, seen_rows_n: Int64) -> Launched:
        """Have a memory on a GPU predict, count and learn the batch, comparing each choice with all rows. Does not wait
        for it. Arguments as for `ask`."""
        num_rows, told = self._items.num_rows, _told(batch)
        events = self._events(batch, told, seen_rows_n)
        query_R = (np.cumsum(batch.is_wanted_R) - 1)[told]
        logits_of = self._there(forward, num_rows)
        size, done = max(1, MOST_DEVICE_LOGITS // num_rows), []
        for start in range(0, len(told), size):
            part = slice(start, start + size)
            asked = to_device(query_R[part][events.chosen_R[part] == 1], forward.query_SD.device)
            done.append(self._memory.learn_together(events[part], logits_of(asked)))
        return Launched(batch, done)

    def _are_exact(self, number_R: Int64, num_rows: int, *, samples: bool) -> NDArray[np.bool_]:
        """Which of these events are compared with all rows."""
        if not samples:
            return np.asarray(number_R % -(-num_rows // MOST_PREDICTED_ROWS) == 0)
        if num_rows <= self.exact_rows:
            return np.ones(len(number_R), np.bool_)
        together = min(EXACT_TOGETHER, max(1, MOST_ROWS_TOGETHER // num_rows))
        return np.asarray(number_R // together % -(-num_rows // self._rows_per_share) == 0)

    def _logits(self, forward: Forward, num_rows: int, *, samples: bool) -> Callable[[Int64], NDArray[np.float32]]:
        """The network's logits of some of the choices, over the whole catalogue."""
        if samples and num_rows > self.exact_rows:  # too few choices to be worth a table of unit rows
            query_SD, rows_VD = forward.query_SD.numpy(), self._items.store.array
            return lambda asked: memory_logits(query_SD[asked], rows_VD, num_rows, self._unit_width)
        there, device = self._there(forward, num_rows), forward.query_SD.device
        return lambda asked: there(to_device(asked, device)).cpu().numpy()

    def _there(self, forward: Forward, num_rows: int) -> Callable[[Tensor], Tensor]:
        """The same on the network's device."""
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

        A choice that was learned from a sample has neither rank nor loss: those within a sample would flatter.
        """
        return _in_order(batch, [self._learn(part) for part in parts])

    def _learn(self, part: Part) -> MemoryOutcome:
        if part.logit_AV is not None:
            return self._memory.learn(part.events, part.logit_AV)
        if part.given is not None:
            outcome = self._memory.learn_given(part.events, *part.given)
        else:
            assert part.query_AD is not None
            rows_VD = self._items.store.array
            outcome = self._memory.learn_sampled(part.events, part.query_AD, rows_VD, self._unit_width)
        return replace(outcome, loss_R=np.full_like(outcome.loss_R, np.nan))


@dataclass(frozen=True, slots=True, eq=False)
class Launched:
    """A batch's outcomes on their way from a GPU."""

    batch: JaggedBatch
    parts: list[DeviceOutcome]

    def wait(self) -> MemoryOutcome:
        """The outcomes of the choices, in the order of the targets."""
        return _in_order(self.batch, [part.wait() for part in self.parts])


def _in_order(batch: JaggedBatch, parts: Sequence[MemoryOutcome]) -> MemoryOutcome:
    """The outcomes of the choices, in the order of the targets."""
    told = _told(batch)
    wanted = batch.is_wanted_R[told]
    return MemoryOutcome.join(parts).ordered(np.flatnonzero(wanted)[np.argsort(told[wanted])])


def _runs(is_exact_R: NDArray[np.bool_], size: int) -> Iterator[slice]:
    """Consecutive events that are all compared with all rows (at most ``size`` at a time), or all not."""
    ends = [*(np.flatnonzero(np.diff(is_exact_R)) + 1).tolist(), len(is_exact_R)]
    start = 0
    for end in ends:
        step = size if end > start and is_exact_R[start] else max(1, end - start)
        yield from (slice(at, min(at + step, end)) for at in range(start, end, step))
        start = end


def _told(batch: JaggedBatch) -> Int64:
    """Indices of the targets that concern the memory, new interactions and choices, in the order of their times."""
    told = np.flatnonzero(batch.is_new_R | batch.is_wanted_R)
    return told[np.argsort(batch.time_ms_n[batch.target_R[told]], kind="stable")]
