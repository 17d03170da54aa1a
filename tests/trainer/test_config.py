"""What the configuration refuses, and with which messages."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

import pytest

from model.config import ADDED as MODEL_ADDED
from model.config import MODEL_LIMITS, ModelConfig
from trainer.checkpoint.plan import Plan
from trainer.checkpoint.recorded import ADDED, difference
from trainer.config import TRAINER_LIMITS, TrainerConfig
from trainer.learner.step import Learner
from trainer.recovery import Resumed, _Published
from wire.checks import Number
from wire.errors import ConfigError, HeadraceError
from wire.weights import Manifest

REFUSED_MODEL = [
    ({"kinds": ()}, r"model\.kinds: expected 1 to 32 names, none twice, got \(\); set action\.kinds"),
    ({"kinds": tuple(map(str, range(33)))}, r"model\.kinds: expected 1 to 32 names"),
    ({"kinds": ("like", "like")}, r"model\.kinds: expected 1 to 32 names, none twice"),
    ({"num_layers": 0}, r"model\.num_layers: expected a whole number, 1 to 1024, got 0; 2 is usual"),
    ({"num_layers": 2**32}, r"model\.num_layers: expected a whole number, 1 to 1024, got 4294967296"),
    ({"num_heads": 2.0}, r"model\.num_heads: expected a whole number, 1 to 1024, got 2\.0"),
    ({"norm_len": -1.0}, r"model\.norm_len: expected a number above 0, got -1\.0"),
    ({"temperature": float("nan")}, r"model\.temperature: expected a number above 0, got nan"),
    ({"bias_scale": float("inf")}, r"model\.bias_scale: expected a number, got inf"),
    ({"item_width": 1}, r"model\.item_width: expected a whole number, 2 to 16384, got 1; 64 is usual"),
    ({"num_features": -1}, r"model\.num_features: expected a whole number, 0 or more, got -1; set action\.features"),
    ({"num_user_features": -1}, r"model\.num_user_features: expected .* got -1; set action\.user_features"),
    ({"use_value": 1}, r"model\.use_value: expected true or false, got 1"),
]
REFUSED_TRAINER = [
    ({"device": "tpu"}, r"trainer\.device: expected one of \('auto', 'cpu', 'cuda'\), got 'tpu'; use auto"),
    ({"backend": "cpp"}, r"trainer\.backend: expected one of"),
    ({"schedule": "cosine"}, r"trainer\.schedule: expected one of .* got 'cosine'; use constant"),
    ({"schedule": "wsa"}, r"trainer\.schedule: expected wsa with warmup_steps, stable_steps or anneal_steps above 0"),
    ({"warmup_steps": -1}, r"trainer\.warmup_steps: expected a whole number, 0 or more, got -1; 0 starts at the full"),
    ({"stable_steps": -1}, r"trainer\.stable_steps: expected a whole number, 0 or more, got -1"),
    ({"anneal_steps": -5}, r"trainer\.anneal_steps: expected a whole number, 0 or more, got -5"),
    ({"schedule": "wsa", "warmup_steps": 5, "anneal_steps": -1}, r"trainer\.anneal_steps: expected"),
    ({"final_lr_ratio": 1.5}, r"trainer\.final_lr_ratio: expected a number, 0 to 1, got 1\.5; 0\.1 is usual"),
    ({"on_gap": "ignore"}, r"trainer\.on_gap: expected one of \('stop', 'skip'\), got 'ignore'; use stop"),
    ({"seed": -1}, r"trainer\.seed: expected a whole number, 0 to 4294967295, got -1; any such number will do"),
    ({"seed": 10**400}, r"trainer\.seed: expected a whole number, 0 to 4294967295, got 1"),
    ({"seed": 1.5}, r"trainer\.seed: expected a whole number"),
    ({"seed": True}, r"trainer\.seed: expected a whole number, .* got True"),
    ({"full_softmax_max_items": -1}, r"trainer\.full_softmax_max_items: expected .* got -1; 0 always samples"),
    ({"max_step_tokens": 0}, r"trainer\.max_step_tokens: expected a whole number, 1 or more, got 0"),
    ({"dense_lr": 0.0}, r"trainer\.dense_lr: expected a number above 0"),
    ({"table_lr": float("inf")}, r"trainer\.table_lr: expected a number above 0, got inf"),
    ({"beta1": 1.0}, r"trainer\.beta1: expected a number, 0 to below 1, got 1\.0; 0\.9 is usual"),
    ({"weight_decay": -0.1}, r"trainer\.weight_decay: expected a number, 0 or more, got -0\.1; 0 turns it off"),
    ({"clip_norm": -1.0}, r"trainer\.clip_norm: expected a number, 0 or more, got -1\.0; 0 turns it off"),
    ({"admit_after": 0}, r"trainer\.admit_after: expected a whole number, 1 or more"),
    ({"evict_after_days": -1.0}, r"trainer\.evict_after_days: expected a number, 0 or more, got -1\.0; 0 keeps every"),
    ({"publish_every_s": -2.0}, r"trainer\.publish_every_s: expected a number above 0, got -2\.0"),
    ({"step_linger_s": -0.1}, r"trainer\.step_linger_s: expected a number, 0 or more"),
    ({"dropout": 1.0}, r"trainer\.dropout: expected a number, 0 to below 1, got 1\.0; 0 turns it off"),
    ({"metric_share": 0.0}, r"trainer\.metric_share: expected a number, above 0 to 1, got 0\.0"),
    ({"metrics_port": 65536}, r"trainer\.metrics_port: expected a whole number, 0 to 65535, got 65536; 0 switches"),
    (
        {"num_threads": -1},
        r"trainer\.num_threads: expected a whole number, 0 to 1024, got -1; 0: half of the processors",
    ),
    ({"checkpoint_every_steps": -1}, r"trainer\.checkpoint_every_steps: expected a whole number, 0 or more"),
    ({"checkpoint_dir": ""}, r"trainer\.checkpoint_dir: expected a string that is not empty, got ''"),
    ({"model_id": " "}, r"trainer\.model_id: expected a string that is not empty, got ' '"),
    ({"journal_fsync": "no"}, r"trainer\.journal_fsync: expected true or false, got 'no'"),
    ({"chunk_bytes": 1_000_000}, r"trainer\.chunk_bytes: expected a whole number, 1 to 900000, got 1000000; a broker"),
    (
        {"stochastic_length_alpha": 1.0},
        r"trainer\.stochastic_length_alpha: expected 0, or above 1 and at most 2, got 1\.",
    ),
    (
        {"stochastic_length_alpha": 0.5},
        r"trainer\.stochastic_length_alpha: expected 0, or above 1 and at most 2, got 0\.",
    ),
    ({"stochastic_length_alpha": 2.5}, r"trainer\.stochastic_length_alpha: expected a number, 0 to 2, got 2\.5; 0 tu"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED_MODEL)
def test_a_model_that_cannot_be_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**values)


@pytest.mark.parametrize(("values", "message"), REFUSED_TRAINER)
def test_a_trainer_that_cannot_be_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(**values)


@pytest.mark.parametrize(("kind", "limits"), [(ModelConfig, MODEL_LIMITS), (TrainerConfig, TRAINER_LIMITS)])
def test_every_setting_has_a_limit_and_refuses_what_is_not_even_its_kind(kind: type[Any], limits: Any) -> None:
    assert set(limits) == {each.name for each in fields(kind)}
    for name in limits:
        for value in (None, object(), [1]):
            with pytest.raises(ConfigError, match=rf"{name}: expected .*; \w+"):
                kind(**{name: value})


@pytest.mark.parametrize("config", [ModelConfig(), TrainerConfig()])
def test_a_number_is_fine_at_its_bounds_and_refused_beyond_them(config: Any) -> None:
    limits = MODEL_LIMITS if isinstance(config, ModelConfig) else TRAINER_LIMITS
    for name, limit in limits.items():
        if not isinstance(limit, Number):
            continue
        for bound, is_open, beyond in ((limit.low, limit.open_low, -1), (limit.high, limit.open_high, 1)):
            if not math.isinf(bound):
                if not is_open:
                    replace(config, **{name: bound})
                with pytest.raises(ConfigError, match=name):
                    replace(config, **{name: bound if is_open else bound + beyond})


def test_a_refusal_is_one_of_ours_and_a_value_error() -> None:
    assert issubclass(ConfigError, HeadraceError)
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
    assert {
        "seed",
        "dense_lr",
        "table_lr",
        "num_negatives",
        "admit_after",
        "dropout",
        "schedule",
        "exclude_seen",
    } <= set(learning)
    assert not {"device", "checkpoint_dir", "publish_every_s", "metric_share"} & set(learning)
    assert set(learning) < {each.name for each in fields(TrainerConfig)}


def test_settings_recorded_before_there_were_others_agree_with_what_those_builds_did() -> None:
    model, config = ModelConfig(), TrainerConfig()
    assert not set(MODEL_ADDED) & set(model.as_dict())
    learning = {key: value for key, value in config.learning_dict().items() if key not in ADDED}
    assert difference(model, config, model.as_dict(), learning) is None


@pytest.mark.parametrize(
    ("more", "without", "is_ours"),
    [({"no_longer": 1}, (), True), ({}, ADDED, True), ({"user_tokens": False}, (), True), ({"seed": 7}, (), False)],
)
def test_a_trainer_without_a_checkpoint_follows_what_a_build_with_other_settings_published(
    more: dict[str, Any], without: Collection[str], *, is_ours: bool
) -> None:
    """Settings that only one of the builds has are no reason to begin a new line of training."""
    model, learning = ModelConfig().as_dict(), TrainerConfig().learning_dict()
    model |= {key: value for key, value in more.items() if key in MODEL_ADDED}
    learning |= {key: value for key, value in more.items() if key not in MODEL_ADDED}
    published = Manifest(
        model_id=TrainerConfig().model_id, epoch=1, number=0, kind="base", onto_number=-1, base_number=0, base_offset=0,
        num_chunks=1, num_bytes=0, checksum="", covered={}, covered_offsets={}, newest_event_ms=1, newest_record_ms=1,
        num_interactions=1, plan=[[(0, 0, 7)]], created_ms=1, metrics={}, lineage="theirs", model_config=model,
        learning={key: value for key, value in learning.items() if key not in without},
    )  # fmt: skip
    resumed = Resumed("new", Plan(0), is_fresh=True)
    _Published(Learner(ModelConfig(), TrainerConfig()), resumed, {}).merge([published])
    assert resumed.lineage == ("theirs" if is_ours else "new")


def test_the_first_setting_that_differs_is_named_in_both_directions() -> None:
    hstu, fuxi, config = ModelConfig(), ModelConfig(block="fuxi"), TrainerConfig()
    assert ModelConfig.from_dict(fuxi.as_dict()) == fuxi
    learning = config.learning_dict()
    assert difference(fuxi, config, hstu.as_dict(), learning) == ("model.block", "hstu", "fuxi")
    assert difference(hstu, config, fuxi.as_dict(), learning) == ("model.block", "fuxi", "hstu")
    later = replace(config, sgd_after_steps=5)
    assert difference(hstu, later, hstu.as_dict(), learning) == ("trainer.sgd_after_steps", 0, 5)
