"""What a trainer can be told: the model it learns, and how it learns it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "reference")
PRECISIONS = ("high", "highest")
SCHEDULES = ("constant", "wsa")


class TrainerError(Exception):
    """Anything the trainer refuses or stops for. The message says what was expected, what came and what to do.

    TrainerError
    ├── ConfigError          a value of the configuration is not usable
    ├── DeviceError          the device asked for is not there
    ├── SourceError          examples are missing, damaged or do not fit the model
    │   └── HoleError        numbers are missing from the sequences topic
    ├── CheckpointError      a checkpoint cannot be written or read
    ├── JournalError         the plan of steps cannot be written or followed
    ├── VersionError         a published version does not fit the weights it is applied to
    └── FencedError          another trainer has taken over
    """


class ConfigError(TrainerError, ValueError):
    """A configuration value is out of range; names the key, the value and what would be right."""


class DeviceError(TrainerError):
    """The device asked for is not on this machine."""


class SourceError(TrainerError):
    """Examples are missing, damaged, or do not fit the model."""


class HoleError(SourceError):
    """Outbox numbers of a partition are missing from the sequences topic."""


class CheckpointError(TrainerError):
    """A checkpoint could not be written, or none of those present can be read."""


class JournalError(TrainerError):
    """The plan of steps could not be written, or does not fit the checkpoint."""


class VersionError(TrainerError):
    """A version does not fit the weights that it is applied to."""


class FencedError(TrainerError):
    """Another trainer has claimed a higher epoch; this one must stop."""


def _expect(holds: bool, key: str, expected: str, got: object, advice: str) -> None:
    if not holds:
        raise ConfigError(f"{key}: expected {expected}, got {got!r}; {advice}")


def _expect_positive(config: object, section: str, keys: Iterable[str]) -> None:
    for key in keys:
        value = getattr(config, key)
        _expect(value > 0, f"{section}.{key}", "a number above 0", value, "leave it out to get the default")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of the HSTU: what a server must know to run the weights.

    ``kinds`` and the numbers of feature columns follow the action configuration. ``item_width`` is the width of an item
    row: its first ``item_width - 1`` columns are the item's direction (compared by cosine), the last one its bias.
    """

    kinds: tuple[str, ...] = ("rate", "like", "love")
    num_features: int = 0
    num_user_features: int = 0
    num_layers: int = 2
    model_width: int = 64
    num_heads: int = 2
    qk_width: int = 32
    value_width: int = 32
    item_width: int = 64
    norm_len: float = 64.0
    max_context: int = 200
    num_positions: int = 256
    num_time_buckets: int = 64
    time_unit_ms: float = 1000.0
    temperature: float = 0.2
    bias_scale: float = 1.0
    norm_eps: float = 1e-5
    use_domain: bool = True
    use_value: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        _expect(0 < len(self.kinds) <= 32, "model.kinds", "1 to 32 action kinds", self.kinds, "set action.kinds")
        positive = (
            "num_layers",
            "model_width",
            "num_heads",
            "qk_width",
            "value_width",
            "norm_len",
            "max_context",
            "num_positions",
            "num_time_buckets",
            "time_unit_ms",
            "temperature",
            "norm_eps",
        )
        _expect_positive(self, "model", positive)
        _expect(self.item_width >= 2, "model.item_width", "2 or more", self.item_width, "64 is usual")
        _expect(self.num_features >= 0, "model.num_features", "0 or more", self.num_features, "set action.features")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they go into manifests and checkpoints."""
        return {**asdict(self), "kinds": list(self.kinds)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `as_dict`; keys that this build does not know are an error."""
        return _from_dict(cls, values)


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """How the model is learned, kept and published. Times in seconds, ages in days, sizes as named.

    On a GPU alone: ``matmul_precision`` is torch's for products of float32 ("high": TF32 with its 11 bits, several
    times as fast; "highest": float32), ``cuda_graphs`` replays the layers as graphs (`trainer.graph`), which pays where
    a step waits for its launches: small models, small batches.
    """

    model_id: str = "headrace"
    device: str = "auto"
    backend: str = "auto"
    seed: int = 1
    deterministic: bool = False
    matmul_precision: str = "high"
    cuda_graphs: bool = False
    num_threads: int = 0
    # One step
    max_step_tokens: int = 8192
    max_step_targets: int = 256
    file_take: int = 256
    step_linger_s: float = 0.2
    # Learning
    dense_lr: float = 3e-3
    table_lr: float = 0.02
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.98
    adam_eps: float = 1e-8
    clip_norm: float = 1.0
    dropout: float = 0.0
    rank_weight: float = 1.0
    row_init_std: float = 0.02
    schedule: str = "constant"
    warmup_steps: int = 0
    stable_steps: int = 0
    anneal_steps: int = 0
    final_lr_ratio: float = 0.1
    full_softmax_max_items: int = 10_000
    num_negatives: int = 1024
    frequency_half_life: float = 1_000_000.0
    stochastic_length_alpha: float = 0.0
    # Vocabulary
    admit_after: int = 1
    evict_after_days: float = 0.0
    evict_every_steps: int = 1000
    # Metrics
    exclude_seen: bool = True
    metric_share: float = 1.0
    metric_window: int = 10_000
    # What outlives the process
    checkpoint_dir: str = "checkpoints"
    checkpoint_every_s: float = 60.0
    checkpoint_every_steps: int = 0
    journal_fsync: bool = False
    publish_every_s: float = 2.0
    base_every: int = 50
    chunk_bytes: int = 900_000
    on_hole: str = "stop"
    max_buffered_examples: int = 4096
    # What tells about it
    lag_every_s: float = 1.0
    metrics_port: int = 0

    def __post_init__(self) -> None:
        _expect(self.device in DEVICES, "trainer.device", f"one of {DEVICES}", self.device, "use auto")
        _expect(self.backend in BACKENDS, "trainer.backend", f"one of {BACKENDS}", self.backend, "use auto")
        _expect(
            self.matmul_precision in PRECISIONS, "trainer.matmul_precision", f"one of {PRECISIONS}",
            self.matmul_precision, "use high",
        )  # fmt: skip
        _expect(self.schedule in SCHEDULES, "trainer.schedule", f"one of {SCHEDULES}", self.schedule, "use constant")
        _expect(self.on_hole in ("stop", "skip"), "trainer.on_hole", "stop or skip", self.on_hole, "use stop")
        positive = (
            "max_step_tokens",
            "max_step_targets",
            "file_take",
            "dense_lr",
            "table_lr",
            "row_init_std",
            "num_negatives",
            "frequency_half_life",
            "admit_after",
            "evict_every_steps",
            "metric_window",
            "checkpoint_every_s",
            "publish_every_s",
            "base_every",
            "max_buffered_examples",
            "lag_every_s",
        )
        _expect_positive(self, "trainer", positive)
        _expect(self.step_linger_s >= 0, "trainer.step_linger_s", "0 or more", self.step_linger_s, "0.2 is usual")
        _expect(0 <= self.dropout < 1, "trainer.dropout", "0 or more, below 1", self.dropout, "0 turns it off")
        _expect(0 < self.metric_share <= 1, "trainer.metric_share", "above 0, at most 1", self.metric_share, "use 1")
        _expect(
            0 < self.chunk_bytes <= 900_000,
            "trainer.chunk_bytes",
            "1 to 900000",
            self.chunk_bytes,
            "a broker refuses records above 1 MB by default",
        )
        _expect(
            0 <= self.stochastic_length_alpha <= 2,
            "trainer.stochastic_length_alpha",
            "0 (off) to 2",
            self.stochastic_length_alpha,
            "1.6 to 2 is usual",
        )
        wsa_steps = self.warmup_steps + self.stable_steps + self.anneal_steps
        _expect(
            self.schedule != "wsa" or wsa_steps > 0,
            "trainer.schedule",
            "wsa with warmup_steps, stable_steps or anneal_steps above 0",
            wsa_steps,
            "set them, or use constant",
        )

    def learning_dict(self) -> dict[str, Any]:
        """The values that decide the weights: a replay must use the same ones."""
        return {key: value for key, value in asdict(self).items() if key not in _NOT_LEARNING}


_NOT_LEARNING = frozenset(
    {
        "device",
        "backend",
        "deterministic",
        "matmul_precision",
        "cuda_graphs",
        "num_threads",
        "exclude_seen",
        "metric_share",
        "metric_window",
        "model_id",
        "file_take",
        "max_step_tokens",
        "max_step_targets",
        "step_linger_s",
        "checkpoint_dir",
        "checkpoint_every_s",
        "checkpoint_every_steps",
        "journal_fsync",
        "publish_every_s",
        "base_every",
        "chunk_bytes",
        "on_hole",
        "max_buffered_examples",
        "lag_every_s",
        "metrics_port",
    }
)

Config = TypeVar("Config")


def _from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    _expect(not unknown, kind.__name__, f"keys among {sorted(known)}", unknown, "use the build that wrote it, or newer")
    return kind(**values)
