"""Items with similar embeddings, by cosine over the table that recommendations are scored with."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from kernels import top_k
from model.tokens import ITEMS
from serving.weights_manager import HeldVersion


@torch.inference_mode()
def similar_items(version: HeldVersion, row: int, k: int, removed: Collection[int] = ()) -> list[tuple[int, float]]:
    """(hash, cosine) of the ``k`` live items most similar to that of ``row``, best first, without that item and those
    ``removed``."""
    table, network = version.tables[ITEMS], version.network
    query_1D = table.derived[row : row + 1].clone()
    query_1D[:, -1] = 0.0  # the last column is the item's bias, which does not count for similarity
    k = min(k, table.num_rows)
    out = np.unique(np.append(table.lookup(np.fromiter(removed, np.int64)), row))
    out = out[out > 0]
    scores_1k, rows_1k = top_k(
        query_1D, table.derived, k, normalize=False, valid_V=table.live,
        exclude_rows=network.tensor(out), exclude_offsets_R1=network.tensor(np.array([0, len(out)], np.int64)),
        backend=network.backend,
    )  # fmt: skip
    rows = rows_1k[0].cpu().numpy()
    found = rows >= 0
    return list(zip(table.keys_of(rows[found]).tolist(), scores_1k[0].cpu().numpy()[found].tolist(), strict=True))
