"""Whether a version's numbers are finite, and its rows some that can be: checked before it comes into service, in case
its trainer did not."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import ModelConfig
from model.probe import probe_outputs
from model.rates import Rates
from model.tokens import ITEMS
from serving.model.network import Network
from wire.errors import VersionError
from wire.weights import Version

NUM_PROBED = 4
PROBE_TOLERANCE = 0.02
"""Results of different precisions and devices differ by less."""


@torch.inference_mode()
def check_sound(version: Version, network: Network) -> None:
    """Raise `VersionError` if weights or predictions for a few items are not finite, if rows are numbered as none can
    be, or if the probe differs."""
    snapshot = version.snapshot
    for name, array in snapshot.dense.items():
        if not np.isfinite(array).all():
            raise VersionError(f"dense weights {name} are not finite")
    for name, table in snapshot.tables.items():
        if not np.isfinite(table.rows).all():
            raise VersionError(f"rows of table {name} are not finite")
        _check_rows(f"table {name}", table.row_index, len(table.rows))
    for part, arrays in (("memory", snapshot.memory), ("rates", snapshot.rates)):
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise VersionError(f"{name} of the {part} is not finite")
            if name.endswith(("_index", "neighbour_row")):
                _check_rows(f"{name} of the {part}", array)
    _rates_of(network.config).check(snapshot.rates)
    _check_few_items(version, network)
    _check_probe(version, network)


def _check_rows(what: str, rows: NDArray[Any], num: int | None = None) -> None:
    """Check that these are numbers of rows, ``num`` of them: numpy would take negative ones for the last rows."""
    if rows.ndim != 1 or rows.dtype.kind != "i" or rows.min(initial=0) < 0 or num not in (None, len(rows)):
        raise VersionError(f"{what}: expected {'' if num is None else num} numbers of rows, got others")


@lru_cache(maxsize=1)
def _rates_of(config: ModelConfig) -> Rates:
    """The rates that versions of this model fit into. Not to be changed."""
    return Rates(config, most_kept=1)


def _check_few_items(version: Version, network: Network) -> None:
    """Check that predictions from a few of the version's own items are finite."""
    snapshot = version.snapshot
    rows_ND = network.tensor(snapshot.tables[ITEMS].rows[:NUM_PROBED].astype(np.float32))
    num = len(rows_ND)
    if not num:
        return
    model, zero, bounds = network.model, network.tensor(np.zeros(1, np.int64)), network.tensor(np.array([0, num]))
    times = network.tensor(1000 * np.arange(1, num + 1))
    item_nM = model.item_inputs(rows_ND, None)
    y_BM, _ = network.extend(item_nM, times, times, bounds, network.nothing(), zero, zero)
    scores = model.retrieval_query(y_BM) @ model.retrieval_table(rows_ND).T
    if not (torch.isfinite(scores).all() and torch.isfinite(model.rank_logits(y_BM, None)).all()):
        raise VersionError("predictions from these weights are not finite")


def _check_probe(version: Version, network: Network) -> None:
    """Check that these weights give the same outputs here as at the trainer (`model.probe`)."""
    expected = np.array(version.manifest.quality.probe)
    if not len(expected):
        return
    got = np.array(probe_outputs(network.model, network.backend))
    if got.shape != expected.shape or not np.allclose(got, expected, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE):
        raise VersionError(
            f"for fixed inputs the trainer's weights gave {expected[:4].tolist()}..., here they give "
            f"{got[:4].tolist()}...: the builds differ, or the weights do"
        )
