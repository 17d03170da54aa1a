"""The settings that checkpoints and versions record, of this build or an earlier one, compared with ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.config import ADDED as MODEL_ADDED
from model.config import ModelConfig
from trainer.config import TrainerConfig

ADDED: dict[str, Any] = {
    "shards": 1,
    "memory_group": 1,
    "feedback_window_s": 60.0,
    "top_dropout_ratio": 1.0,
    "sgd_after_steps": 0,
    "sgd_lr_ratio": 10.0,
    "value_weight": 1.0,
    "max_exposure_weight": 10.0,
    "kind_weights": {},
    "max_items": 0,
    "row_precision": "float32",
}
"""Settings that earlier builds did not have, with the values that describe those builds."""


def difference(
    model: ModelConfig, trainer: TrainerConfig, their_model: Mapping[str, Any], their_learning: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """The first setting in which recorded ones differ from ours: its name, theirs and ours; None if all agree."""
    sections = (
        ("model", {**MODEL_ADDED, **model.as_dict()}, {**MODEL_ADDED, **their_model}),
        ("trainer", trainer.learning_dict(), {**ADDED, **their_learning}),
    )
    for section, ours, theirs in sections:
        for key, value in ours.items():
            if theirs.get(key) != value:
                return f"{section}.{key}", theirs.get(key), value
    return None
