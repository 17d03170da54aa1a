"""A request to the engine, and its answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire.example import Interactions

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request.

    ``user`` names the cache entry (None: do not cache). ``candidates`` (C,) int64 item hashes to rank, or None to
    recommend ``k`` items. ``domain`` is a hash; 0: the history's last. ``now_ms``: the moment to answer for. ``allow``
    (A,) hashes: recommend only these; ``deny`` (D,) hashes: none of these. ``exclude_seen``: leave out what the
    history contains; None: only if the stream has no repeats. ``diversity``: see `serving.answering.diversity`.
    ``num_erased``: `Histories.num_erased` before ``past`` was read.
    """

    user: str | None
    past: Interactions
    user_features: Int64
    now_ms: int
    domain: int = 0
    candidates: Int64 | None = None
    k: int = 10
    exclude_seen: bool | None = True
    allow: Int64 | None = None
    deny: Int64 | None = None
    diversity: float = 0.0
    num_erased: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The answer to a `Request`: item hashes with scores, best first, or (C, kinds) probabilities of the candidates,
    and with ``model.predict_value`` what is expected of each one's value (C,)."""

    items: Int64
    scores: NDArray[np.float32]
    known: NDArray[np.bool_]
    values: NDArray[np.float32] | None = None
