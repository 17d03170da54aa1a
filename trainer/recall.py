"""What a step asks of the memory, and how the answers are put back in the order of the targets.

The memory meets new interactions and predicts, counts and learns choices one after the other, in the order of their
times. The network's logits that it mixes with are those before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory import MemoryEvents, MemoryOutcome
from model.embedding import EmbeddingTable
from model.hstu import HSTU
from model.memory import MOST_LOGITS, MOST_PREDICTED_ROWS, Memory
from model.memory_events import events_of
from trainer.batch import JaggedBatch
from trainer.evaluator import Forward, to_device

Int64 = NDArray[np.int64]


class Recall:
    """Asks ``memory``, whose rows are those of ``items``.

    At most ``most_logits`` of the network's logits are computed at a time. In a catalogue of more than
    ``most_predicted_rows`` rows only a share of the choices is predicted and learned from; all are counted.
    """

    def __init__(
        self,
        memory: Memory,
        items: EmbeddingTable,
        model: HSTU,
        *,
        most_logits: int = MOST_LOGITS,
        most_predicted_rows: int = MOST_PREDICTED_ROWS,
    ) -> None:
        self._memory, self._items, self._model = memory, items, model
        self._most_logits, self._most_predicted_rows = most_logits, most_predicted_rows

    @torch.no_grad()
    def ask(
        self, batch: JaggedBatch, forward: Forward, seen_rows_n: Int64, num_before: int
    ) -> Iterator[tuple[MemoryEvents, Tensor]]:
        """The batch's events with the network's logits of the choices, in parts that fit.

        ``seen_rows_n``: the items' rows before the batch. ``num_before``: interactions before it; decides which share
        of the choices is predicted.
        """
        num_rows, config = self._items.num_rows, self._model.config
        self._memory.grow(num_rows)
        told = _told(batch)
        rows_n, unseen = seen_rows_n.copy(), np.flatnonzero(seen_rows_n == 0)
        rows_n[unseen] = self._items.lookup(batch.item_n[unseen])
        events = events_of(
            rows_n, batch.bits_n, batch.starts_B1, batch.owner_n[batch.target_R[told]],
            batch.target_R[told], config, is_chosen_R=batch.is_wanted_R[told],
        )  # fmt: skip
        every = -(-num_rows // self._most_predicted_rows)
        if every > 1:
            events.chosen_R[(num_before + np.arange(len(told))) % every > 0] *= 2
        logits = self._logits(forward, num_rows)
        query_R = (np.cumsum(batch.is_wanted_R) - 1)[told]
        size = max(1, self._most_logits // num_rows)
        for part in (slice(start, start + size) for start in range(0, len(told), size)):
            asked = query_R[part][events.chosen_R[part] == 1]
            yield events[part], logits(asked)

    def _logits(self, forward: Forward, num_rows: int) -> Callable[[Int64], Tensor]:
        """The network's logits of some of the choices, over the whole catalogue."""
        known_SV = forward.logit_SV
        if known_SV is not None:
            return lambda asked: known_SV.index_select(0, torch.from_numpy(asked))
        table_VD = forward.table_UD if forward.is_whole else self._model.retrieval_table(self._items.weight[:num_rows])
        return lambda asked: forward.query_SD[to_device(asked, table_VD.device)] @ table_VD.T

    def answer(self, batch: JaggedBatch, parts: Iterable[tuple[MemoryEvents, Tensor]]) -> MemoryOutcome:
        """Predict, count and learn what `ask` gave; the outcomes of the choices, in the order of the targets."""
        done = [self._memory.learn(events, logit_AV.detach().cpu().numpy()) for events, logit_AV in parts]
        told = _told(batch)
        wanted = batch.is_wanted_R[told]
        return MemoryOutcome.join(done).ordered(np.flatnonzero(wanted)[np.argsort(told[wanted])])


def _told(batch: JaggedBatch) -> Int64:
    """Indices of the targets that concern the memory, new interactions and choices, in the order of their times."""
    told = np.flatnonzero(batch.is_new_R | batch.is_wanted_R)
    return told[np.argsort(batch.time_ms_n[batch.target_R[told]], kind="stable")]
