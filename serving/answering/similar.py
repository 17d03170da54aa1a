"""Items with similar embeddings, by cosine over the table that recommendations are scored with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import top_k
from model.tokens import ITEMS
from serving.search.index import ItemSearch
from serving.versions.manager import HeldVersion

Int64 = NDArray[np.int64]


@torch.inference_mode()
def similar_items(
    version: HeldVersion, row: int, k: int, removed: Int64 | Sequence[int] = (), search: ItemSearch | None = None
) -> list[tuple[int, float]]:
    """(hash, cosine) of the ``k`` live items most similar to that of ``row``, best first, without that item and those
    ``removed``. With ``search`` they are looked for where it says, unless that leaves fewer than ``k``."""
    table = version.tables[ITEMS]
    out = np.unique(np.append(table.lookup(np.asarray(removed, np.int64)), row))
    near = search.rows_near(version, row) if search is not None else None
    if near is not None and len(near := np.setdiff1d(near, out)) >= k:
        found = _most_similar(version, row, k, table.derived[near], table.live[near], near[:0])
        if len(found[0]) == k:
            return list(zip(table.keys_of(near[found[0]]).tolist(), found[1].tolist(), strict=True))
    rows, cosines = _most_similar(version, row, k, table.derived, table.live, out[out > 0])
    return list(zip(table.keys_of(rows).tolist(), cosines.tolist(), strict=True))


def _most_similar(
    version: HeldVersion, row: int, k: int, among_ND: Tensor, live_N: Tensor, out: Int64
) -> tuple[Int64, NDArray[np.float32]]:
    """Places among these rows, and cosines."""
    network = version.network
    query_1D = version.tables[ITEMS].derived[row : row + 1].clone()
    query_1D[:, -1] = 0.0  # the last column is the item's bias, which does not count for similarity
    scores_1k, rows_1k = top_k(
        query_1D, among_ND, min(k, len(among_ND)), normalize=False, valid_V=live_N, exclude_rows=network.tensor(out),
        exclude_offsets_R1=network.tensor(np.array([0, len(out)], np.int64)), backend=network.backend,
    )  # fmt: skip
    rows = rows_1k[0].cpu().numpy()
    return rows[rows >= 0], scores_1k[0].cpu().numpy()[rows >= 0]
