"""What users did, as columns: the form in which the model takes it and the cache keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kernels.windows import unpack_kinds
from model.config import ModelConfig
from model.tokens import changed, states
from wire.example import Interactions

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Columns of n interactions, of one user or of several, one after the other.

    ``features`` (n, F) and ``user_features`` (n, F_user): hashes; ``value_n``: NaN where there is none. With
    ``model.user_tokens``, changes of the user's features (item 0) stand between a history's interactions
    (`model.tokens`).
    """

    item_n: Int64
    bits_n: NDArray[np.uint32]
    time_ms_n: Int64
    domain_n: Int64
    value_n: NDArray[np.float32]
    features: Int64
    user_features: Int64

    def __len__(self) -> int:
        return len(self.item_n)

    @staticmethod
    def of(past: Interactions, user_features: Int64, config: ModelConfig) -> Columns:
        """A user's history; features are left out if the model has another number of them."""
        num = len(past)
        fits = past.feature_hash.shape == (num, config.num_columns)
        kept = past.feature_hash if fits else np.zeros((num, config.num_columns), np.int64)
        features = np.ascontiguousarray(kept[:, : config.num_features])
        columns = Columns(past.item_hash, past.action_bits, past.timestamp_ms, past.domain_hash, past.value, features,
                          user_feature_rows(user_features, config, num))  # fmt: skip
        return columns.with_changes(states(kept, config)) if config.user_tokens else columns

    def with_changes(self, state_nU: Int64) -> Columns:
        """One user's history, with a change before each interaction that has one."""
        num = len(self)
        changes = np.flatnonzero(changed(state_nU, np.array([0, num]))) if num else np.zeros(0, np.int64)
        no_item, none = np.zeros(len(changes), np.int64), np.zeros((len(changes), self.features.shape[1]), np.int64)
        made = Columns.of_candidates(no_item, 0, 0, none, state_nU[changes])
        made = replace(made, time_ms_n=self.time_ms_n[changes])
        plain = replace(self, user_features=np.zeros_like(state_nU))
        order = np.argsort(np.concatenate([2 * changes, 2 * np.arange(num) + 1]))
        return Columns(*(np.concatenate([getattr(made, name), getattr(plain, name)])[order] for name in self.__slots__))

    @property
    def told(self) -> Columns:
        """The interactions alone, without changes."""
        is_told = self.item_n != 0
        return self if is_told.all() else Columns(*(getattr(self, name)[is_told] for name in self.__slots__))

    @staticmethod
    def of_candidates(item_C: Int64, now_ms: int, domain: int, features_CF: Int64, user_features_CF: Int64) -> Columns:
        """Items as interactions without actions, all at the same time and in the same domain."""
        num = len(item_C)
        return Columns(item_C, np.zeros(num, np.uint32), np.full(num, now_ms), np.full(num, domain),
                       np.full(num, np.nan, np.float32), features_CF, user_features_CF)  # fmt: skip

    @staticmethod
    def cat(parts: Sequence[Columns]) -> Columns:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        return Columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in Columns.__slots__))

    def tail(self, first: int) -> Columns:
        """The interactions from ``first`` on."""
        return Columns(*(getattr(self, name)[first:] for name in Columns.__slots__))

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return sum(getattr(self, name).nbytes for name in Columns.__slots__)

    def num_by_kind(self, num_kinds: int) -> NDArray[np.float64]:
        """(K,) how many of the interactions had each kind."""
        return np.asarray(unpack_kinds(self.bits_n, num_kinds).sum(axis=0, dtype=np.float64))

    def num_same(self, other: Columns) -> int:
        """How many of the first interactions are the same, bit by bit, in everything that their tokens depend on."""
        num = min(len(self), len(other))
        same_n = np.ones(num, np.bool_)
        for name in Columns.__slots__:
            ours, theirs = getattr(self, name)[:num], getattr(other, name)[:num]
            if ours.shape != theirs.shape:
                return 0
            if name == "value_n":  # NaN, which means none, equals nothing
                ours, theirs = ours.view(np.int32), theirs.view(np.int32)
            same_n &= ours == theirs if ours.ndim == 1 else (ours == theirs).all(axis=1)
        return num if same_n.all() else int(same_n.argmin())


def user_feature_rows(user_features: Int64, config: ModelConfig, num: int) -> Int64:
    """(num, F_user) the user's features on every interaction; 0 if none are known."""
    fits = len(user_features) == config.num_user_features
    row = user_features if fits else np.zeros(config.num_user_features, np.int64)
    return np.broadcast_to(row, (num, len(row)))
