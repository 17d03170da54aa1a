"""The rules that turn interactions into tokens, written once for the trainer and the server.

Tokens of n interactions of B users, one user after the other: Φ₀, a₀, Φ₁, a₁, … (T = 2n). ``starts_B1`` (B+1,) int64:
user b has interactions ``starts_B1[b]:starts_B1[b+1]``.

With ``model.user_tokens`` the user's features are a second series, merged into the first by time: where they differ
from those before, an interaction is preceded by a **change**, which has the two tokens of an interaction on no item, of
no kind, with the features as they are now. So a run of equal features is one token pair, at its earliest time
("Actions Speak Louder than Words", Zhai et al., ICML 2024, section 2.2). Only the network sees changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.config import ModelConfig

Int64 = NDArray[np.int64]
ITEMS, DOMAINS, FEATURES = "items", "domains", "features"
"""The embedding tables' names, in checkpoints and in published weights."""
_NO_PROPENSITY = np.full(1, np.nan)
_NO_PROPENSITY.flags.writeable = False


def states(column_nC: Int64, config: ModelConfig) -> Int64:
    """(n, U) the user's features as of each interaction, in its columns; U = 0 without ``model.user_tokens``."""
    return np.ascontiguousarray(column_nC[:, config.num_features + config.propensity :])


def propensities(column_nC: Int64, config: ModelConfig) -> NDArray[np.float64]:
    """(n,) the propensity in each interaction's columns; NaN where it is not known."""
    if not config.propensity:
        return np.ndarray(len(column_nC), np.float64, _NO_PROPENSITY, strides=(0,))  # not memory for each
    found_n = np.ascontiguousarray(column_nC[:, config.num_features]).view(np.float64)
    return np.where(found_n > 0, found_n, np.nan)


def changed(feature_nU: Int64, starts_B1: Int64) -> NDArray[np.bool_]:
    """(n,) whether a change precedes each interaction. ``feature_nU`` (n, U): the user's features as of each one."""
    changed_n = np.zeros(len(feature_nU), np.bool_)
    changed_n[1:] = (feature_nU[1:] != feature_nU[:-1]).any(axis=1)
    first_B = starts_B1[:-1]
    changed_n[first_B] = feature_nU[first_B].any(axis=1)
    return changed_n


def query_times(time_ms_n: Int64, starts_B1: Int64, last_ms_B: Int64 | None = None) -> Int64:
    """(n,) the time at which the item after each interaction is asked for: that of the next interaction.

    For a user's last interaction it is ``last_ms_B`` (B,), when serving the moment of the request; without it, the last
    interaction's own time. Every user has at least one interaction.
    """
    asked_n = np.empty_like(time_ms_n)
    asked_n[:-1] = time_ms_n[1:]
    last_B = starts_B1[1:] - 1
    asked_n[last_B] = time_ms_n[last_B] if last_ms_B is None else last_ms_B
    return asked_n


def token_times(time_ms_n: Int64, query_ms_n: Int64) -> tuple[Int64, Int64]:
    """(T,) key times, which are the tokens' own, and (T,) query times: an action token asks what comes next."""
    key_time_T = np.repeat(time_ms_n, 2)
    query_time_T = key_time_T.copy()
    query_time_T[1::2] = query_ms_n
    return key_time_T, query_time_T


def side_inputs(
    domain_n: Int64 | None,
    feature_nF: Int64,
    user_feature_nF: Int64,
    sum_rows: Callable[[str, Int64], Tensor | None],
) -> Tensor | None:
    """(n, M) what is added to the item tokens: the rows of the domain and of all features. None if there are none.

    ``domain_n``: None for a model without domains. ``sum_rows``: a table's name and keys (n, F) → the sum of their rows
    (n, M), or None for a table that has never had a row. That must depend on the table alone: what other users in a
    batch have or lack must not change a user's prediction.
    """
    keys = [] if domain_n is None else [(DOMAINS, domain_n[:, None])]
    keys.append((FEATURES, np.concatenate([feature_nF, user_feature_nF], axis=1)))
    sums = [sum_rows(name, keys_nF) for name, keys_nF in keys if keys_nF.shape[1]]
    parts = [part for part in sums if part is not None]
    return sum(parts[1:], parts[0]) if parts else None
