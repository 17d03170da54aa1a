"""What an interaction shares with others, as the odds count it: domain, features of item and user, the pause before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.odds.arrays import NUM_PAUSES
from model.config import ModelConfig
from model.tokens import DOMAINS, FEATURES

Int64 = NDArray[np.int64]


class Rows(Protocol):
    """A table of keys."""

    def lookup(self, keys_N: Int64, /) -> Int64:
        """(N,) rows, 0 for keys without one."""


def alike_of(domain_n: Int64, feature_nF: Int64, config: ModelConfig) -> Int64:
    """(n, L) keys that other items may share: the domain, and each feature of the item."""
    if not feature_nF.shape[1] and config.use_domain:
        return domain_n[:, None]  # not a copy: a step asks for all that its users have done
    return np.concatenate([domain_n[:, None], feature_nF], axis=1) if config.use_domain else feature_nF


def attributes_of(
    tables: Mapping[str, Rows], domain_R: Int64, feature_RF: Int64, pause_R: Int64, config: ModelConfig
) -> NDArray[np.int32]:
    """(R, A) rows of the interactions' attributes: the domain, the item's features, the user's features, the pause."""
    rows = [feature_RF[:, :0]]
    if config.use_domain:
        rows.append(_rows_of(tables, DOMAINS, domain_R[:, None]))
    if feature_RF.shape[1]:
        rows.append(_rows_of(tables, FEATURES, feature_RF))
    rows.append(pause_R[:, None])
    return np.concatenate(rows, axis=1).astype(np.int32)


def pauses(time_ms_R: Int64, last_ms_R: Int64, has_last_R: NDArray[np.bool_] | bool) -> Int64:
    """(R,) rows of the pauses between interactions and the last ones before them."""
    seconds_R = np.maximum(time_ms_R - last_ms_R, 0) // 1000
    return np.where(has_last_R, np.minimum(np.frexp(seconds_R + 1)[1], NUM_PAUSES - 1), 0).astype(np.int64)


def _rows_of(tables: Mapping[str, Rows], name: str, key_RA: Int64) -> Int64:
    if name not in tables:
        return np.zeros_like(key_RA)
    return tables[name].lookup(np.ascontiguousarray(key_RA.reshape(-1))).reshape(key_RA.shape)
