"""What the configuration refuses, and how it says so."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from trainer.config import ConfigError, ModelConfig, TrainerConfig, TrainerError

REFUSED_MODEL = [
    ({"kinds": ()}, r"model\.kinds: expected 1 to 32 action kinds, got \(\); set action\.kinds"),
    ({"kinds": tuple(map(str, range(33)))}, r"model\.kinds: expected 1 to 32"),
    ({"num_layers": 0}, r"model\.num_layers: expected a number above 0, got 0; leave it out to get the default"),
    ({"norm_len": -1.0}, r"model\.norm_len: expected a number above 0, got -1\.0"),
    ({"temperature": float("nan")}, r"model\.temperature: expected a number above 0, got nan"),
    ({"item_width": 1}, r"model\.item_width: expected 2 or more, got 1"),
    ({"num_features": -1}, r"model\.num_features: expected 0 or more, got -1"),
]
REFUSED_TRAINER = [
    ({"device": "tpu"}, r"trainer\.device: expected one of \('auto', 'cpu', 'cuda'\), got 'tpu'; use auto"),
    ({"backend": "cpp"}, r"trainer\.backend: expected one of"),
    ({"schedule": "cosine"}, r"trainer\.schedule: expected one of .* got 'cosine'; use constant"),
    ({"schedule": "wsa"}, r"trainer\.schedule: expected wsa with warmup_steps, stable_steps or anneal_steps above 0"),
    ({"on_hole": "ignore"}, r"trainer\.on_hole: expected stop or skip, got 'ignore'; use stop"),
    ({"max_step_tokens": 0}, r"trainer\.max_step_tokens: expected a number above 0, got 0"),
    ({"dense_lr": 0.0}, r"trainer\.dense_lr: expected a number above 0"),
    ({"admit_after": 0}, r"trainer\.admit_after: expected a number above 0"),
    ({"publish_every_s": -2.0}, r"trainer\.publish_every_s: expected a number above 0, got -2\.0"),
    ({"step_linger_s": -0.1}, r"trainer\.step_linger_s: expected 0 or more"),
    ({"dropout": 1.0}, r"trainer\.dropout: expected 0 or more, below 1, got 1\.0; 0 turns it off"),
    ({"metric_share": 0.0}, r"trainer\.metric_share: expected above 0, at most 1"),
    ({"chunk_bytes": 1_000_000}, r"trainer\.chunk_bytes: expected 1 to 900000, got 1000000; a broker refuses"),
    ({"stochastic_length_alpha": 2.5}, r"trainer\.stochastic_length_alpha: expected 0 \(off\) to 2, got 2\.5"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED_MODEL)
def test_a_model_that_cannot_be_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**values)


@pytest.mark.parametrize(("values", "message"), REFUSED_TRAINER)
def test_a_trainer_that_cannot_be_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(**values)


def test_a_refusal_is_a_trainers_error_and_a_value_error() -> None:
    assert issubclass(ConfigError, TrainerError)
    assert issubclass(ConfigError, ValueError)


def test_a_model_is_itself_again_after_a_manifest() -> None:
    model = ModelConfig(kinds=("a", "b"), num_layers=3, use_value=True)
    assert ModelConfig.from_dict(model.as_dict()) == model
    with pytest.raises(ConfigError, match=r"ModelConfig: expected keys among .*got \['num_experts'\]; use the build"):
        ModelConfig.from_dict({**model.as_dict(), "num_experts": 4})


def test_kinds_from_a_file_are_a_tuple() -> None:
    assert ModelConfig(kinds=["a", "b"]).kinds == ("a", "b")  # type: ignore[arg-type]


def test_every_setting_either_decides_the_weights_or_is_known_not_to() -> None:
    learning = TrainerConfig().learning_dict()
    assert {"seed", "dense_lr", "table_lr", "num_negatives", "admit_after", "dropout", "schedule"} <= set(learning)
    assert not {"device", "checkpoint_dir", "publish_every_s", "exclude_seen", "metric_share"} & set(learning)
    assert set(learning) < {each.name for each in fields(TrainerConfig)}
