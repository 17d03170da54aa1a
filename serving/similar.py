"""Items with similar embeddings, by cosine over the table that recommendations are scored with."""

from __future__ import annotations

import numpy as np
import torch

from kernels import top_k
from model.tokens import ITEMS
from serving.holder import HeldVersion


@torch.inference_mode()
def similar_items(version: HeldVersion, row: int, k: int) -> list[tuple[int, float]]:
    """(hash, cosine) of the ``k`` live items most similar to that of ``row``, without itself; best first."""
    table, network = version.tables[ITEMS], version.network
    query_1D = table.derived[row : row + 1].clone()
    query_1D[:, -1] = 0.0  # the last column is the item's bias, which does not count for similarity
    k = min(k, table.num_rows)
    scores_1k, rows_1k = top_k(
        query_1D, table.derived, k, normalize=False, valid_V=table.live,
        exclude_rows=network.tensor(np.array([row], np.int64)),
        exclude_offsets_R1=network.tensor(np.array([0, 1], np.int64)), backend=network.backend,
    )  # fmt: skip
    rows = rows_1k[0].cpu().numpy()
    found = rows >= 0
    return list(zip(table.keys_of(rows[found]).tolist(), scores_1k[0].cpu().numpy()[found].tolist(), strict=True))
