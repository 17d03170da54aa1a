"""Online logistic regression by other libraries, if installed: River and Vowpal Wabbit. Their inputs are the columns of
`bench.rivals.logistic`, and the log-odds of the item's and the user's rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.rivals.counts import Rates
from bench.rivals.targets import told
from bench.streams.events import Step


def installed() -> tuple[str, ...]:
    """Which of the two libraries are installed."""
    return tuple(name for name in ("river", "vowpalwabbit") if find_spec(name) is not None)


class OneAKind:
    """One learner per kind, predicting before it learns. A late kind is learned as a 1; its 0 is not unlearned."""

    def __init__(self, num_kinds: int) -> None:
        self.rates = Rates(num_kinds)

    def over(self, step: Step) -> NDArray[np.float64]:
        """(R, K)."""
        found_RK = np.zeros((step.batch.num_targets, step.batch.num_kinds))
        for target, places_F, prior_PK in told(step, self.rates):
            for kind, came in enumerate((target.kinds_K > 0).tolist()):
                label = came if target.is_new or came else None
                found_RK[target.at, kind] = self.one(kind, places_F.tolist(), prior_PK[:, kind].tolist(), label)
        return found_RK

    def one(self, kind: int, places: Sequence[int], priors: Sequence[float], label: bool | None) -> float:
        """Predict the probability, then learn the outcome unless it is None."""
        raise NotImplementedError


class River(OneAKind):
    """`river.linear_model.LogisticRegression` with Adagrad."""

    def __init__(self, num_kinds: int, rate: float) -> None:
        super().__init__(num_kinds)
        from river import linear_model, optim

        self._models: list[Any] = [
            linear_model.LogisticRegression(optimizer=optim.AdaGrad(rate), intercept_lr=0.0) for _ in range(num_kinds)
        ]

    def one(self, kind: int, places: Sequence[int], priors: Sequence[float], label: bool | None) -> float:
        """See `OneAKind.one`."""
        features: dict[Any, float] = dict.fromkeys(places, 1.0) | {"item": priors[0], "user": priors[1]}
        probability = float(self._models[kind].predict_proba_one(features).get(True, 0.5))
        if label is not None:
            self._models[kind].learn_one(features, label)
        return probability


class VowpalWabbit(OneAKind):
    """Vowpal Wabbit with its own updates: adaptive, normalised, importance-invariant."""

    def __init__(self, num_kinds: int, rate: float) -> None:
        super().__init__(num_kinds)
        import vowpalwabbit

        words = f"--loss_function logistic --link logistic -b 20 -l {rate} --quiet --noconstant"
        self._models: list[Any] = [vowpalwabbit.Workspace(words) for _ in range(num_kinds)]

    def one(self, kind: int, places: Sequence[int], priors: Sequence[float], label: bool | None) -> float:
        """See `OneAKind.one`."""
        features = f"| {' '.join(map(str, places))} item:{priors[0]:.5f} user:{priors[1]:.5f}"
        probability = float(self._models[kind].predict(features))
        if label is not None:
            self._models[kind].learn(f"{1 if label else -1} {features}")
        return probability
