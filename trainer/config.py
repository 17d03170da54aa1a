"""The trainer's configuration: how it learns, stores and publishes the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from wire.checks import (
    ABOVE_0,
    AT_LEAST_1,
    FROM_0,
    Limit,
    Number,
    Numbers,
    Switch,
    Text,
    Word,
    above_0,
    at_least_1,
    check_fields,
    expect,
)

DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "reference")
SCHEDULES = ("constant", "wsa")
FEEDBACK = ("vanilla", "reversal", "fnw", "wait")
PRECISIONS = ("highest", "high", "medium")
PUBLISHED = ("half", "exact")
ROWS = ("float32", "bfloat16", "float16")
EXCLUDE = ("auto", "always", "never")


TRAINER_LIMITS: dict[str, Limit] = {
    "model_id": Word(),
    "device": Word(DEVICES, "use auto"),
    "backend": Word(BACKENDS, "use auto"),
    "seed": Number(0, 2**32 - 1, whole=True, advice="any such number will do"),
    "float32_matmul_precision": Word(PRECISIONS, "use high, or highest for plain float32"),
    "deterministic": Switch(),
    "cuda_graphs": Switch(),
    "graph_gradients": Switch(),
    "num_threads": Number(0, 1024, whole=True, advice="0: half of the processors"),
    "shards": Number(1, 256, whole=True, advice="a power of 2; 1 for a single process"),
    "rank_timeout_s": above_0(1, 3_600),
    "whole_table_bytes": Number(0, whole=True, advice="0 divides tables as soon as steps read few of their rows"),
    "max_step_tokens": AT_LEAST_1,
    "max_step_targets": AT_LEAST_1,
    "file_take": AT_LEAST_1,
    "max_train_context": Number(0, whole=True, advice="0 takes sequence.max_context"),
    "context_gradient": Switch(),
    "history_bytes": at_least_1(2e6),
    "step_linger_s": Number(0, advice="0.2 is usual", usual=(0.001, 30)),
    "dense_lr": above_0(1e-7, 1),
    "table_lr": above_0(1e-7, 10),
    "weight_decay": Number(0, advice="0 turns it off"),
    "beta1": Number(0, 1, open_high=True, advice="0.9 is usual"),
    "beta2": Number(0, 1, open_high=True, advice="0.98 is usual"),
    "adam_eps": ABOVE_0,
    "clip_norm": Number(0, advice="0 turns it off"),
    "dropout": Number(0, 1, open_high=True, advice="0 turns it off"),
    "top_dropout_ratio": Number(0, 1, advice="1 drops as much in every layer"),
    "sgd_after_steps": Number(0, whole=True, advice="0 stays with Adam"),
    "sgd_lr_ratio": ABOVE_0,
    "feedback": Word(FEEDBACK, "use vanilla"),
    "feedback_window_s": ABOVE_0,
    "rank_weight": Number(0, advice="0 learns retrieval alone"),
    "value_weight": Number(0, advice="0 learns no values"),
    "max_exposure_weight": Number(1, advice="1 corrects nothing, 10 is usual"),
    "kind_weights": Numbers(ABOVE_0, "names of action.kinds with numbers"),
    "row_init_std": ABOVE_0,
    "row_precision": Word(ROWS, "use float32, or bfloat16 for half of the memory"),
    "schedule": Word(SCHEDULES, "use constant"),
    "warmup_steps": Number(0, whole=True, advice="0 starts at the full rate"),
    "stable_steps": FROM_0,
    "anneal_steps": FROM_0,
    "final_lr_ratio": Number(0, 1, advice="0.1 is usual"),
    "full_softmax_max_items": Number(0, whole=True, advice="0 always samples"),
    "num_negatives": AT_LEAST_1,
    "frequency_half_life": ABOVE_0,
    "stochastic_length_alpha": Number(0, 2, advice="0 turns it off, 1.6 to 2 is usual"),
    "admit_after": AT_LEAST_1,
    "evict_after_days": Number(0, advice="0 keeps every item", usual=(0.001, 3_650)),
    "max_items": Number(0, whole=True, advice="0 sets no limit"),
    "evict_every_steps": AT_LEAST_1,
    "tables_folder": Text(),
    "exclude_seen": Word(EXCLUDE, "use auto"),
    "memory_half_life": ABOVE_0,
    "memory_group": Number(1, 128, whole=True, advice="1 on a CPU"),
    "metric_share": Number(0, 1, open_low=True, advice="use 1"),
    "metric_window": AT_LEAST_1,
    "frozen_every_s": Number(0, advice="3600 is usual; 0 turns it off", usual=(1, 1e6)),
    "frozen_share": Number(0, 1, open_low=True, advice="0.02 is usual"),
    "frozen_bytes": AT_LEAST_1,
    "checkpoint_dir": Word(),
    "checkpoint_every_s": above_0(0.5, 7_200),
    "checkpoint_every_steps": Number(0, whole=True, advice="0 leaves it to checkpoint_every_s"),
    "journal_fsync": Switch(),
    "publish_every_s": above_0(0.02, 300),
    "publish_precision": Word(PUBLISHED, "use half"),
    "base_every": AT_LEAST_1,
    "base_max_age_share": Number(0, 1, open_low=True, open_high=True, advice="0.5 is usual"),
    "keep_versions": Number(0, whole=True, advice="0 keeps all until the topic's retention"),
    "chunk_bytes": Number(
        1, 900_000, whole=True, advice="a broker refuses records above 1 MB by default", usual=(10_000, math.inf)
    ),
    "on_gap": Word(("stop", "skip"), "use stop"),
    "max_buffered_examples": AT_LEAST_1,
    "takeover_after_s": above_0(1, 3_600),
    "lag_every_s": above_0(0.05, 60),
    "metrics_host": Word(advice="0.0.0.0 listens on every interface"),
    "metrics_port": Number(0, 65_535, whole=True, advice="0 switches metrics off"),
}


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """How the model is learned, stored and published. Times in seconds, ages in days, sizes as named.

    ``float32_matmul_precision``: see `torch.set_float32_matmul_precision`. At "high" and "medium" the kernels multiply
    float32 as two bfloat16 terms (about 16 bits) on a CPU with AMX, and as TF32 (11 bits) on a GPU; elsewhere it
    changes nothing. ``max_train_context``: how many interactions before a user's first target a step computes.
    ``context_gradient``: whether gradients flow through the whole context, or (false) only through the last layer's
    keys and values and the targets' own tokens, which halves the time of a live step. ``exclude_seen``: whether items
    that a user has met are left out of predictions and recommendations: "always" (or true), "never" (or false), or
    "auto": only if the stream has hardly any repeats. ``cuda_graphs`` (GPU only): replay a step's passes as CUDA graphs
    (`trainer.network.graph_step`; only the layers if the loss is sampled), which pays off if a step mostly waits for
    kernel launches: small models, small batches. ``graph_gradients``: with these, one graph for both passes, instead of
    two with autograd between them. ``shards``: into how many parts of users a step is cut, whose gradients are added up
    in a fixed order: any number of processes up to that learns the same, to the bit (`trainer.shards`).
    ``rank_timeout_s``: how long a rank waits for another. ``whole_table_bytes``: up to this size each rank has the
    whole item table, beyond it the ranks divide all tables (`trainer.ranks.sharding`). ``memory_group``: from 2 on, the
    memory is on the GPU, and up to that many events are predicted from one state, fewer at first
    (`kernels.memory.reference.memory_learn_grouped`). ``kind_weights``: how much a choice of a kind counts, 1 if it is
    not named (`trainer.network.choice_weights`). ``tables_folder``: where what grows with the catalogue is kept in
    files instead of memory (`model.growing`). ``frozen_every_s``, ``frozen_share``, ``frozen_bytes``: how often a
    frozen copy to compare with is renewed, at most how much of the time its predictions take, and how large it may be
    (`trainer.frozen_rival`).
    """

    model_id: str = "headrace"
    device: str = "auto"
    backend: str = "auto"
    seed: int = 1
    float32_matmul_precision: str = "high"
    deterministic: bool = False
    cuda_graphs: bool = False
    graph_gradients: bool = False
    num_threads: int = 0
    # Several processes (torchrun)
    shards: int = 1
    rank_timeout_s: float = 60.0
    whole_table_bytes: int = 1 << 30
    # One step
    max_step_tokens: int = 8192
    max_step_targets: int = 64
    file_take: int = 64
    step_linger_s: float = 0.2
    # Learning
    max_train_context: int = 16
    context_gradient: bool = False
    history_bytes: int = 1 << 30
    feedback: str = "vanilla"
    feedback_window_s: float = 60.0
    dense_lr: float = 3e-3
    table_lr: float = 0.02
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.98
    adam_eps: float = 1e-8
    clip_norm: float = 1.0
    dropout: float = 0.0
    top_dropout_ratio: float = 1.0
    sgd_after_steps: int = 0
    sgd_lr_ratio: float = 10.0
    rank_weight: float = 1.0
    value_weight: float = 1.0
    max_exposure_weight: float = 10.0
    kind_weights: Mapping[str, float] = field(default_factory=dict)
    row_init_std: float = 0.02
    row_precision: str = "float32"
    schedule: str = "constant"
    warmup_steps: int = 0
    stable_steps: int = 0
    anneal_steps: int = 0
    final_lr_ratio: float = 0.1
    full_softmax_max_items: int = 10_000
    num_negatives: int = 1024
    frequency_half_life: float = 1_000_000.0
    memory_half_life: float = 1_000_000.0
    memory_group: int = 1
    stochastic_length_alpha: float = 0.0
    # Vocabulary
    admit_after: int = 1
    evict_after_days: float = 0.0
    max_items: int = 0
    evict_every_steps: int = 1000
    tables_folder: str = ""
    # Metrics
    exclude_seen: str | bool = "auto"
    metric_share: float = 1.0
    metric_window: int = 10_000
    frozen_every_s: float = 3600.0
    frozen_share: float = 0.02
    frozen_bytes: int = 1 << 30
    # Checkpoints and versions
    checkpoint_dir: str = "checkpoints"
    checkpoint_every_s: float = 60.0
    checkpoint_every_steps: int = 0
    journal_fsync: bool = False
    publish_every_s: float = 1.25
    publish_precision: str = "half"
    base_every: int = 80
    base_max_age_share: float = 0.5
    keep_versions: int = 0
    chunk_bytes: int = 900_000
    on_gap: str = "stop"
    max_buffered_examples: int = 4096
    # Leadership, if several trainers run
    takeover_after_s: float = 10.0
    # Lag and metrics
    lag_every_s: float = 1.0
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0

    def __post_init__(self) -> None:
        meant = {"true": "always", "false": "never"}.get(str(self.exclude_seen).lower(), self.exclude_seen)
        object.__setattr__(self, "exclude_seen", meant)
        check_fields(self, "trainer", TRAINER_LIMITS)
        alpha = self.stochastic_length_alpha
        expect(
            alpha == 0 or alpha > 1,
            "trainer.stochastic_length_alpha",
            "0, or above 1 and at most 2",
            alpha,
            "0 turns it off; from 0 to 1 nothing would be thinned either",
        )
        expect(
            self.shards & (self.shards - 1) == 0,
            "trainer.shards",
            "a power of 2",
            self.shards,
            "4 lets 1, 2 or 4 processes train",
        )
        wsa_steps = self.warmup_steps + self.stable_steps + self.anneal_steps
        expect(
            self.schedule != "wsa" or wsa_steps > 0,
            "trainer.schedule",
            "wsa with warmup_steps, stable_steps or anneal_steps above 0",
            wsa_steps,
            "set them, or use constant",
        )

    def dropouts(self, num_layers: int) -> tuple[float, ...]:
        """Dropout of each layer, lowest first: from ``dropout`` to ``top_dropout_ratio`` times that, in equal steps
        (LSRM)."""
        steps, fall = max(1, num_layers - 1), 1.0 - self.top_dropout_ratio
        return tuple(self.dropout * (1.0 - fall * index / steps) for index in range(num_layers))

    @property
    def late_feedback(self) -> str:
        """How a kind is taught that comes after its interaction was (`trainer.network.losses.ranking_loss`)."""
        return "vanilla" if self.feedback == "wait" else self.feedback

    @property
    def window_ms(self) -> int | None:
        """How long interactions wait before they are learned; None: they are learned at once."""
        return round(self.feedback_window_s * 1000) if self.feedback == "wait" else None

    def learning_dict(self) -> dict[str, Any]:
        """The settings that determine the weights: a replay must use the same ones."""
        return {key: value for key, value in asdict(self).items() if key not in _NOT_LEARNING}


_NOT_LEARNING = frozenset(
    {
        "device",
        "backend",
        "deterministic",
        "cuda_graphs",
        "graph_gradients",
        "num_threads",
        "rank_timeout_s",
        "whole_table_bytes",
        "tables_folder",
        "metric_share",
        "metric_window",
        "frozen_every_s",
        "frozen_share",
        "frozen_bytes",
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
        "publish_precision",
        "base_every",
        "base_max_age_share",
        "keep_versions",
        "chunk_bytes",
        "on_gap",
        "max_buffered_examples",
        "takeover_after_s",
        "lag_every_s",
        "metrics_host",
        "metrics_port",
    }
)
"""Settings that decide when and where something is computed, stored or measured, not what is learned."""
