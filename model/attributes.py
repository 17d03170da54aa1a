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
_PAUSE_MS = 1000 * ((1 << np.arange(NUM_PAUSES - 1)) - 1)
"""From which pause on each row counts, beginning with row 1."""
_PAUSE_MS[0] = np.iinfo(np.int64).min


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
    first, num_features = int(config.use_domain), feature_RF.shape[1]
    attribute_RA = np.empty((len(pause_R), first + num_features + 1), np.int32)
    if config.use_domain:
        attribute_RA[:, 0] = _rows_of(tables, DOMAINS, domain_R)
    if num_features:
        attribute_RA[:, first:-1] = _rows_of(tables, FEATURES, feature_RF)
    attribute_RA[:, -1] = pause_R
    return attribute_RA


def pauses(time_ms_R: Int64, last_ms_R: Int64, has_last_R: NDArray[np.bool_] | bool) -> Int64:
    """(R,) rows of the pauses between interactions and the last ones before them."""
    return np.searchsorted(_PAUSE_MS, time_ms_R - last_ms_R, side="right") * has_last_R


def _rows_of(tables: Mapping[str, Rows], name: str, keys: Int64) -> Int64:
    if name not in tables:
        return np.zeros_like(keys)
    return tables[name].lookup(np.ascontiguousarray(keys.reshape(-1))).reshape(keys.shape)
