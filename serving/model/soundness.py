"""Whether a version's numbers are finite and in the form of its model: checked before anything of it is applied, in
case its trainer did not, or is of another build."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import ModelConfig
from model.memory_form import in_form
from model.probe import probe_outputs
from model.rates import Rates
from model.tokens import ITEMS
from serving.model.network import Network
from wire.errors import VersionError
from wire.weights import TableRows, Version

NUM_PROBED = 4
MOST_ROWS = 1 << 31
PROBE_TOLERANCE = 0.02
"""Results of different precisions and devices differ by less."""


@torch.inference_mode()
def check_sound(version: Version, network: Network) -> None:
    """Raise `VersionError` if weights or predictions for a few items are not finite, if rows, the memory or the rates
    have another form than this model's, or if the probe differs."""
    snapshot = version.snapshot
    for name, array in snapshot.dense.items():
        if not np.isfinite(array).all():
            raise VersionError(f"dense weights {name} are not finite")
    for name, table in snapshot.tables.items():
        if not np.isfinite(table.rows).all():
            raise VersionError(f"rows of table {name} are not finite")
        _check_rows(f"table {name}", table.row_index, len(table.rows))
    memory = in_form(snapshot.memory, network.config.num_features)
    ends = {"neighbour_row": int(memory["size"][0])} if memory else {}
    for part, arrays in (("memory", snapshot.memory), ("rates", snapshot.rates)):
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise VersionError(f"{name} of the {part} is not finite")
            if name.endswith(("_index", "neighbour_row")):
                _check_rows(f"{name} of the {part}", array, end=ends.get(name, MOST_ROWS))
    _check_tables(snapshot.tables, network.config)
    _rates_of(network.config).check(snapshot.rates)
    _check_few_items(version, network)
    _check_probe(version, network)


def _check_tables(tables: Mapping[str, TableRows], config: ModelConfig) -> None:
    """Check that keys are whole numbers, one for each row, and that rows are as wide as this model's."""
    for name, table in tables.items():
        width = config.item_width if name == ITEMS else config.model_width
        if table.rows.ndim != 2 or table.rows.shape[1] != width:
            raise VersionError(f"table {name}: expected rows of {width} numbers, got {table.rows.shape}")
        if (
            any(keys.dtype != np.int64 for keys in (table.ids, table.row_index, table.tombstones))
            or table.tombstones.ndim != 1
            or (table.ids.shape != table.row_index.shape)
        ):
            raise VersionError(f"table {name}: expected a key for each of its rows, got others")


def _check_rows(what: str, rows: NDArray[Any], num: int | None = None, end: int = MOST_ROWS) -> None:
    """Check that these are numbers of rows, ``num`` of them, from 0 to below ``end``: numpy would take negative ones
    for the last rows."""
    is_whole = rows.ndim == 1 and rows.dtype.kind == "i" and num in (None, len(rows))
    if not is_whole or rows.view(f"u{rows.itemsize}").max(initial=0) >= end:  # negative ones are large then
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
