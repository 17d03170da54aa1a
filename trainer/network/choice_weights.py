"""How much each choice counts: in retrieval's loss, and in all that the memory counts and learns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch
from trainer.network.losses import exposure_weights


@dataclass(frozen=True, slots=True)
class ChoiceWeights:
    """``weight_K``: how much a choice counts by its kind, in the order of bits; of several kinds the largest counts.
    Empty: all count alike. ``most_exposure``: see `trainer.network.losses.exposure_weights`; 1 corrects nothing."""

    weight_K: tuple[float, ...] = ()
    most_exposure: float = 1.0

    @staticmethod
    def of(model: ModelConfig, trainer: TrainerConfig) -> ChoiceWeights:
        """The weights of a configuration."""
        weight_K = tuple(float(trainer.kind_weights.get(kind, 1.0)) for kind in model.kinds)
        most = trainer.max_exposure_weight if model.propensity else 1.0
        return ChoiceWeights(weight_K if set(weight_K) != {1.0} else (), most)

    @property
    def differ(self) -> bool:
        """Whether choices may differ in weight."""
        return bool(self.weight_K) or self.most_exposure > 1.0

    def over(self, batch: JaggedBatch, target_S: NDArray[np.int64]) -> NDArray[np.float32]:
        """(S,) weights of those of a batch's targets, all of them choices, by the kinds that they have by now."""
        weight_S = exposure_weights(batch.propensity_n[batch.target_R[target_S]], self.most_exposure)
        if self.weight_K:
            bits_S = batch.previous_bits_R[target_S] | batch.learned_bits_R[target_S]
            has_SK = (bits_S[:, None] >> np.arange(len(self.weight_K), dtype=np.uint32)) & 1
            weight_S *= np.where(has_SK == 1, np.array(self.weight_K, np.float32), 0.0).max(axis=1)
        return weight_S


EQUAL = ChoiceWeights()
