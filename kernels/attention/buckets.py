"""How a time difference becomes an index into the time bias: exact integer thresholds, the same on every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, eq=False)
class TimeBuckets:
    """``bucket(dt)`` = number of thresholds ≤ dt: there is one more bucket than thresholds, and bucket 0 is below all.

    ``thresholds_K1``: (K-1,) int64, not decreasing, in the unit of the times.
    """

    thresholds_K1: Tensor

    def __post_init__(self) -> None:
        thresholds = self.thresholds_K1
        if thresholds.dtype != torch.int64 or thresholds.dim() != 1:
            raise ValueError(
                f"thresholds_K1: expected a (K-1,) int64 tensor, got {tuple(thresholds.shape)} {thresholds.dtype}"
            )
        if bool((thresholds[1:] < thresholds[:-1]).any()):
            raise ValueError("thresholds_K1: expected non-decreasing values, got one that decreases; sort them")

    @property
    def num_buckets(self) -> int:
        """K."""
        return len(self.thresholds_K1) + 1

    @classmethod
    def logarithmic(cls, num_buckets: int, unit_ms: float = 1000.0, base: float = math.exp(0.301)) -> TimeBuckets:
        """Bucket floor(log_base(max(1, dt / unit))), at most ``num_buckets - 1``, as integers.

        The default is the natural logarithm over 0.301 of seconds, as in the published research code of
        "Actions Speak Louder than Words".
        """
        if num_buckets < 1 or unit_ms <= 0 or base <= 1:
            raise ValueError(
                "time buckets: expected num_buckets >= 1, unit_ms > 0 and base > 1, got "
                f"{num_buckets}, {unit_ms}, {base}"
            )
        exponent_max = math.log(_INT64_MAX / unit_ms, base)
        if num_buckets - 1 > exponent_max:
            raise ValueError(
                f"num_buckets: expected at most {int(exponent_max) + 1} for this base and unit (64-bit times), "
                f"got {num_buckets}"
            )
        return cls(torch.tensor([math.ceil(unit_ms * base**k) for k in range(1, num_buckets)], dtype=torch.int64))

    def bucket(self, delta: Tensor) -> Tensor:
        """Buckets (int64) of int64 time differences of any shape."""
        return torch.bucketize(delta, self.on(delta.device), right=True)

    def on(self, device: torch.device) -> Tensor:
        """The thresholds on a device (copied once)."""
        if device == self.thresholds_K1.device:
            return self.thresholds_K1
        key = str(device)
        if key not in self._copies:
            self._copies[key] = self.thresholds_K1.to(device)
        return self._copies[key]

    @cached_property
    def _copies(self) -> dict[str, Tensor]:
        return {}


@dataclass(eq=False)
class BucketCache:
    """Buckets of one batch, computed by the first layer and shared by all layers. Make one per batch.

    Each backend stores its own kind of ``value`` under ``key``, which identifies the inputs: with other inputs the
    cache is recomputed, never wrong. ``in_order``: whether every user's key times never decrease, if the caller knows;
    else it is read from the GPU once, which stalls. If it is wrong, results are wrong.
    """

    key: tuple[object, ...] = ()
    value: object = None
    inputs: tuple[object, ...] = field(default=(), repr=False)
    in_order: bool | None = None
