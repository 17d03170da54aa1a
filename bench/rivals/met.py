"""What the user met last, chosen or only shown."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.streams.events import Step


class LastMet:
    """The items of the user's interactions, the newest first. It learns nothing, and is hard to beat where a choice is
    an interaction of its own that follows its impression."""

    def over(self, step: Step) -> NDArray[Any]:
        """See `bench.rivals.Retriever.over`: the place of a row's last interaction among the user's; 0 without one."""
        events, score_AV = step.events, np.zeros((len(step.asked), step.num_known + 1))
        for score_V, e in zip(score_AV, step.asked.tolist(), strict=True):
            met_M = events.met_rows[events.met_begin_R[e] : events.met_end_R[e]]
            met_M = met_M[met_M <= step.num_known]
            score_V[met_M] = np.arange(1, len(met_M) + 1)
        return score_AV
