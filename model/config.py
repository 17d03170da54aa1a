"""The model's configuration: what a server must know to run the weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from wire.checks import ABOVE_0, AT_LEAST_1, Limit, Names, Number, Switch, Word, check_fields, expect

MAX_WIDTH = 16_384
"""Far above any model in use: a slip of the pen is refused before it has taken all memory of a machine."""

MODEL_LIMITS: dict[str, Limit] = {
    "kinds": Names(32, "set action.kinds"),
    "num_features": Number(0, whole=True, advice="set action.features"),
    "num_user_features": Number(0, whole=True, advice="set action.user_features"),
    "user_tokens": Switch(),
    "propensity": Switch(),
    "block": Word(("hstu", "fuxi"), "use hstu"),
    "ffn_width": Number(0, MAX_WIDTH, whole=True, advice="0 takes model_width"),
    "num_layers": Number(1, 1_024, whole=True, advice="2 is usual"),
    "model_width": Number(1, MAX_WIDTH, whole=True, advice="64 is usual"),
    "num_heads": Number(1, 1_024, whole=True, advice="2 is usual"),
    "qk_width": Number(1, MAX_WIDTH, whole=True, advice="32 is usual"),
    "value_width": Number(1, MAX_WIDTH, whole=True, advice="32 is usual"),
    "item_width": Number(2, MAX_WIDTH, whole=True, advice="64 is usual"),
    "norm_len": ABOVE_0,
    "max_context": AT_LEAST_1,
    "num_positions": Number(1, 1 << 24, whole=True, advice="256 is usual"),
    "num_time_buckets": AT_LEAST_1,
    "time_unit_ms": Number(0, 1e10, open_low=True, advice="1000 is usual"),
    "temperature": ABOVE_0,
    "bias_scale": Number(),
    "norm_eps": ABOVE_0,
    "use_domain": Switch(),
    "use_value": Switch(),
    "predict_value": Switch(),
    "positive_kinds": Names(32, "leave it out to go by their names", least=0),
    "negative_kinds": Names(32, "leave it out to go by their names", least=0),
    "memory_neighbours": Number(1, 4096, whole=True, advice="256 is usual"),
}
ADDED: dict[str, Any] = {
    "user_tokens": False, "propensity": False, "block": "hstu", "ffn_width": 0, "predict_value": False,
}  # fmt: skip
"""Settings that earlier builds do not know, each with the value that gives the model of those builds."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of the HSTU: what a server must know to run the weights.

    ``kinds``, the numbers of feature columns, ``user_tokens`` and ``propensity`` follow the action configuration.
    ``item_width`` is the width of an item row: its first ``item_width - 1`` columns are the item's direction (compared
    by cosine), the last one its bias. ``positive_kinds`` and ``negative_kinds`` say what counts as a choice; if empty,
    their names decide (`model.kinds`). ``block``: what the layers are (`model.layers`); ``ffn_width``: of a FuXi-alpha
    layer's second stage, 0 for as wide as the model. ``predict_value``: values are predicted beside the kinds.
    ``memory_neighbours``: how many neighbours the memory keeps for each item, at most (`model.memory`).
    """

    kinds: tuple[str, ...] = ("rate", "like", "love")
    num_features: int = 0
    num_user_features: int = 0
    user_tokens: bool = False
    propensity: bool = False
    block: str = "hstu"
    ffn_width: int = 0
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
    predict_value: bool = False
    positive_kinds: tuple[str, ...] = ()
    negative_kinds: tuple[str, ...] = ()
    memory_neighbours: int = 256

    def __post_init__(self) -> None:
        for name in ("kinds", "positive_kinds", "negative_kinds"):
            kinds: Any = getattr(self, name)
            if isinstance(kinds, list):  # as JSON gives them
                object.__setattr__(self, name, tuple(kinds))
        check_fields(self, "model", MODEL_LIMITS)
        for name in ("positive_kinds", "negative_kinds"):
            strange = sorted(set(getattr(self, name)) - set(self.kinds))
            expect(not strange, f"model.{name}", f"kinds among {self.kinds}", strange, "add them to action.kinds")
        # As `kernels.TimeBuckets.logarithmic`, which would refuse more of them only when the process has started.
        most = int(math.log((2**63 - 1) / self.time_unit_ms, math.exp(0.301))) + 1
        expect(
            self.num_time_buckets <= most, "model.num_time_buckets",
            f"at most {most}, which reach as far as times of 64 bits (time_unit_ms = {self.time_unit_ms:g})",
            self.num_time_buckets, "lower it, or the unit",
        )  # fmt: skip

    @property
    def num_columns(self) -> int:
        """How many columns each interaction has (`wire.example.Interactions.feature_hash`)."""
        return self.num_features + self.propensity + self.num_user_features * self.user_tokens

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for manifests and checkpoints. Settings in `ADDED` are left out at their default, so that
        builds without them can read the rest."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if key not in ADDED or value != ADDED[key]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `as_dict`. Raises `ConfigError` for keys that this build does not know."""
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(values) - known)
        expect(
            not unknown, cls.__name__, f"keys among {sorted(known)}", unknown, "use the build that wrote it, or newer"
        )
        return cls(**values)
