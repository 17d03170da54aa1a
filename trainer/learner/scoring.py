"""How good a step's predictions were: the odds' part of a step, then the metrics, perhaps beside the next step.

The network and the memory learn nothing from either. The next step's priors come from the odds' counts, but whoever
reads these waits for them (`model.rates`). So where a GPU computes the network, the odds run on a thread of their own
until then; and the memory's outcomes are waited for in the next step, when the GPU has more to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kernels.beside import Beside
from kernels.memory import MemoryOutcome, Ranks
from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.rates import Rates
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch
from trainer.learner.batch_rows import BatchRows
from trainer.learner.ranking_pass import RankingPass
from trainer.metrics.baseline import PopularityBaseline
from trainer.metrics.evaluator import Evaluator, Forward
from trainer.metrics.prequential import PrequentialMetrics

LEAST_BESIDE = 128
"""Fewer targets take less time than waking a thread, and fetching from another core what it has changed."""


class Scoring:
    """Scores one step at a time.

    ``tables``: of domains and features. ``beside``: run the odds on a thread of their own. ``later``: wait for the
    memory in the next step; one on the host must have learned a step before it hears of the next.
    """

    def __init__(
        self, model: ModelConfig, trainer: TrainerConfig, rates: Rates, tables: Mapping[str, EmbeddingTable],
        popularity: PopularityBaseline, *, beside: bool, later: bool,
    ) -> None:  # fmt: skip
        self.ranking_pass = RankingPass(rates, tables, model)
        metrics = PrequentialMetrics(model.kinds, trainer.metric_window, rates.arrivals)
        self._evaluator = Evaluator(trainer, popularity, metrics)
        self._beside, self._later = Beside() if beside else None, later
        self._begun: Callable[[], None] | None = None

    @property
    def evaluator(self) -> Evaluator:
        """What counts the metrics, up to the last step."""
        self.settle()
        return self._evaluator

    def begin(
        self, batch: JaggedBatch, forward: Forward, rows: BatchRows, num_known: int, step: int,
        choices: Callable[[], MemoryOutcome], earlier: Callable[[], Ranks | None],
    ) -> None:  # fmt: skip
        """Have the odds predict and learn a batch; `settle`, or the next step, counts the metrics.

        ``choices``, ``earlier``: what waits for these arguments of `Evaluator.count`. The others: see `Evaluator.ask`.
        """
        self.settle()
        asked = self._evaluator.ask(batch, num_known, rows.seen_R, rows.seen_n, step)
        beside = self._beside if batch.num_targets >= LEAST_BESIDE else None
        ranked = self.ranking_pass.begin(batch, forward, rows.seen_R, beside)
        self._begun = lambda: self._evaluator.count(asked, ranked(), choices(), earlier())
        if not self._later:
            self.settle()

    def settle(self) -> None:
        """Complete what was begun. What it raises is raised again, whoever asks next."""
        begun, self._begun = self._begun, None
        if begun is not None:
            try:
                begun()
            except Exception:
                self._begun = begun
                raise
