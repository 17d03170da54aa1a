# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Ranks of targets and best rows over a whole table, tile by tile; the scores are never all in memory."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.softmax.triton_loss import shape_options
from kernels.softmax.triton_rows import inverse_norm, load_vectors
from kernels.triton_shared import count_at_most, num_processors, require_device


@triton.jit
def tile_scores(query, rows, eps, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Inner products with unit rows. Always the same tile shape, so that equal rows score equal to the bit."""
    return tl.dot(query, tl.trans(rows), input_precision=PRECISION) * inverse_norm(rows, eps, NORMALIZE)[None, :]


@triton.jit
def target_score(
    query, table_ptr, target, inside, eps, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Each query's score of its own target: the diagonal of a tile."""
    rows = load_vectors(table_ptr, target, inside, D, WIDTH)
    score = tile_scores(query, rows, eps, NORMALIZE, PRECISION)
    index = tl.arange(0, ROWS)
    return tl.sum(tl.where(index[:, None] == index[None, :], score, 0.0), 1)


@triton.jit(do_not_specialize=["num_queries", "num_rows"])
def count_kernel(
    query_ptr, table_ptr, target_ptr, valid_ptr, counts_ptr, num_queries, num_rows, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, NORMALIZE: tl.constexpr, HAS_VALID: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """counts[split, query] = (better, equal) among the rows of this split."""
    query_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = query_row < num_queries
    query = load_vectors(query_ptr, query_row, inside, D, WIDTH)
    target = tl.load(target_ptr + query_row, mask=inside, other=-1)
    mine = target_score(query, table_ptr, target, inside, eps, D, WIDTH, ROWS, NORMALIZE, PRECISION)
    better = tl.zeros([ROWS], tl.int32)
    equal = tl.zeros([ROWS], tl.int32)
    for first in range(tl.program_id(1) * ROWS, num_rows, tl.num_programs(1) * ROWS):
        row = first + tl.arange(0, ROWS)
        there = row < num_rows
        if HAS_VALID:
            there = there & (tl.load(valid_ptr + row, mask=there, other=0) != 0)
        score = tile_scores(query, load_vectors(table_ptr, row, row < num_rows, D, WIDTH), eps, NORMALIZE, PRECISION)
        counts = there[None, :] & (row[None, :] != target[:, None])
        better += tl.sum((counts & (score > mine[:, None])).to(tl.int32), 1)
        equal += tl.sum((counts & (score == mine[:, None])).to(tl.int32), 1)
    place = counts_ptr + (tl.program_id(1) * num_queries + query_row) * 2
    tl.store(place, better, mask=inside)
    tl.store(place + 1, equal, mask=inside)


@triton.jit(do_not_specialize=["num_queries", "num_rows", "num_splits"])
def rank_kernel(
    query_ptr, table_ptr, target_ptr, valid_ptr, counts_ptr, excluded_ptr, offsets_ptr, rank_ptr,
    num_queries, num_rows, num_splits, eps, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    NORMALIZE: tl.constexpr, HAS_VALID: tl.constexpr, HAS_EXCLUDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For one query: the splits' counts, minus those of its excluded rows (sorted: query · num_rows + row)."""
    one = tl.program_id(0)
    query_row = one + tl.zeros([ROWS], tl.int32)
    better = 0
    equal = 0
    for split in range(num_splits):
        better += tl.load(counts_ptr + (split * num_queries + one) * 2)
        equal += tl.load(counts_ptr + (split * num_queries + one) * 2 + 1)
    if HAS_EXCLUDED:
        query = load_vectors(query_ptr, query_row, query_row >= 0, D, WIDTH)
        target = tl.load(target_ptr + query_row)
        mine = target_score(query, table_ptr, target, query_row >= 0, eps, D, WIDTH, ROWS, NORMALIZE, PRECISION)
        base = one * tl.full((), num_rows, tl.int64)
        begin = tl.load(offsets_ptr + one)
        end = tl.load(offsets_ptr + one + 1)
        for first in range(begin, end, ROWS):
            place = first + tl.arange(0, ROWS)
            key = tl.load(excluded_ptr + place, mask=place < end, other=-1)
            before = tl.load(excluded_ptr + place - 1, mask=(place > begin) & (place < end), other=-1)
            row = key - base
            counts = (place < end) & (key != before) & (row >= 0) & (row < num_rows) & (row != target)
            if HAS_VALID:
                counts = counts & (tl.load(valid_ptr + row, mask=counts, other=0) != 0)
            score = tile_scores(query, load_vectors(table_ptr, row, counts, D, WIDTH), eps, NORMALIZE, PRECISION)
            own = (tl.arange(0, ROWS) == 0)[:, None] & counts[None, :]
            better -= tl.sum((own & (score > mine[:, None])).to(tl.int32))
            equal -= tl.sum((own & (score == mine[:, None])).to(tl.int32))
    tl.store(rank_ptr + one, 1 + better + (equal + 1) // 2)


@triton.jit(do_not_specialize=["num_excluded", "num_queries", "num_rows", "num_steps"])
def excluded_key_kernel(
    excluded_ptr, offsets_ptr, key_ptr, num_excluded, num_queries, num_rows, num_steps, BLOCK: tl.constexpr
):  # fmt: skip
    """query · num_rows + row of each excluded row; for one outside the table, its query's first key minus one."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    query = count_at_most(offsets_ptr, num_queries + 1, place.to(tl.int64), num_steps) - 1
    row = tl.load(excluded_ptr + place, mask=place < num_excluded, other=-1)
    row = tl.where((row >= 0) & (row < num_rows), row, -1)
    tl.store(key_ptr + place, query.to(tl.int64) * num_rows + row, mask=place < num_excluded)


@triton.jit(do_not_specialize=["num_queries", "num_rows", "first_row", "chunk"])
def score_key_kernel(
    query_ptr, table_ptr, valid_ptr, key_ptr, num_queries, num_rows, first_row, chunk, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, NORMALIZE: tl.constexpr, HAS_VALID: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """key[query, row - first_row]: the score's order in the high 32 bits, the reversed row number in the low ones."""
    query_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = query_row < num_queries
    query = load_vectors(query_ptr, query_row, inside, D, WIDTH)
    query_inverse = inverse_norm(query, eps, NORMALIZE)
    place = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row = first_row + place
    there = (place < chunk) & (row < num_rows)
    rows = load_vectors(table_ptr, row, there, D, WIDTH)
    score = tile_scores(query, rows, eps, NORMALIZE, PRECISION) * query_inverse[:, None]
    if HAS_VALID:
        there = there & (tl.load(valid_ptr + row, mask=there, other=0) != 0)
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 2147483647, bits).to(tl.int64)
    key = ordered * 4294967296 + (4294967295 - row.to(tl.int64))[None, :]
    key = tl.where(there[None, :], key, -9223372036854775807)
    address = key_ptr + query_row.to(tl.int64)[:, None] * chunk + place[None, :]
    tl.store(address, key, mask=inside[:, None] & (place < chunk)[None, :])


@triton.jit(do_not_specialize=["num_excluded", "num_queries", "first_row", "chunk", "num_steps"])
def exclude_kernel(
    excluded_ptr, offsets_ptr, key_ptr, num_excluded, num_queries, first_row, chunk, num_steps, BLOCK: tl.constexpr
):  # fmt: skip
    """Give the excluded rows of a chunk the key of a row that does not compete."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    query = count_at_most(offsets_ptr, num_queries + 1, place.to(tl.int64), num_steps) - 1
    row = tl.load(excluded_ptr + place, mask=place < num_excluded, other=-1) - first_row
    there = (place < num_excluded) & (row >= 0) & (row < chunk)
    least = tl.zeros([BLOCK], tl.int64) - 9223372036854775807
    tl.store(key_ptr + query.to(tl.int64) * chunk + row, least, mask=there)


@triton.jit(do_not_specialize=["num_keys"])
def decode_kernel(key_ptr, score_ptr, row_ptr, num_keys, BLOCK: tl.constexpr):
    """Keys back to scores and rows."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(key_ptr + place, mask=place < num_keys, other=0)
    none = key == -9223372036854775807
    ordered = (key >> 32).to(tl.int32)
    score = tl.where(ordered < 0, ordered ^ 2147483647, ordered).to(tl.float32, bitcast=True)
    tl.store(score_ptr + place, tl.where(none, -float("inf"), score), mask=place < num_keys)
    tl.store(row_ptr + place, tl.where(none, -1, 4294967295 - (key & 4294967295)), mask=place < num_keys)


MAX_GRID = 65_535
"""The most programs along a grid's second and third dimension (CUDA)."""


def _options(query: Tensor, normalize: bool, valid: Tensor | None) -> dict[str, Any]:
    return shape_options(query) | {
        "NORMALIZE": normalize, "HAS_VALID": valid is not None, "PRECISION": "ieee", "num_warps": 4, "num_stages": 2
    }  # fmt: skip


def rank_of_target(
    query_RD: Tensor,
    table_VD: Tensor,
    target_R: Tensor,
    *,
    normalize: bool,
    eps: float,
    valid_V: Tensor | None,
    exclude_rows: Tensor | None,
    exclude_offsets_R1: Tensor | None,
) -> Tensor:
    """`kernels.rank_of_target` on a GPU (or any tensors in Triton's interpreter)."""
    require_device(query_RD, "rank_of_target")
    query, table, target = query_RD.detach().contiguous(), table_VD.detach().contiguous(), target_R.contiguous()
    valid_V = valid_V.contiguous() if valid_V is not None else None
    num_queries, num_rows = len(query), len(table)
    ranks = torch.empty(num_queries, dtype=torch.int64, device=query.device)
    if num_queries == 0:
        return ranks
    options = _options(query, normalize, valid_V)
    tiles = triton.cdiv(num_queries, options["ROWS"])
    splits = max(1, min(triton.cdiv(num_rows, options["ROWS"]), 4 * num_processors(query) // tiles))
    counts = torch.empty(splits, num_queries, 2, dtype=torch.int32, device=query.device)
    count_kernel[(tiles, splits)](query, table, target, valid_V, counts, num_queries, num_rows, eps, **options)
    keys = None
    if exclude_rows is not None and exclude_offsets_R1 is not None and exclude_rows.numel():
        keys = torch.empty(exclude_rows.numel(), dtype=torch.int64, device=query.device)
        excluded_key_kernel[(triton.cdiv(keys.numel(), 128),)](
            exclude_rows.contiguous(), exclude_offsets_R1.contiguous(), keys, keys.numel(), num_queries, num_rows,
            (num_queries + 1).bit_length(), BLOCK=128,
        )  # fmt: skip
        keys = torch.sort(keys).values
    rank_kernel[(num_queries,)](
        query, table, target, valid_V, counts, keys, exclude_offsets_R1 if keys is not None else None, ranks,
        num_queries, num_rows, splits, eps, HAS_EXCLUDED=keys is not None, **options,
    )  # fmt: skip
    return ranks


def top_k(
    query_RD: Tensor,
    table_VD: Tensor,
    k: int,
    *,
    normalize: bool,
    eps: float,
    valid_V: Tensor | None,
    exclude_rows: Tensor | None,
    exclude_offsets_R1: Tensor | None,
    max_keys: int = 1 << 24,
) -> tuple[Tensor, Tensor]:
    """`kernels.top_k` on a GPU: chunks of at most ``max_keys`` keys, each merged into the best so far."""
    require_device(query_RD, "top_k")
    query, table = query_RD.detach().contiguous(), table_VD.detach().contiguous()
    valid_V = valid_V.contiguous() if valid_V is not None else None
    num_queries, num_rows = len(query), len(table)
    options = _options(query, normalize, valid_V)
    chunk = min(num_rows, max(options["ROWS"], max_keys // max(1, num_queries)), MAX_GRID * options["ROWS"])
    best = None
    for first in range(0, num_rows if num_queries else 0, chunk):
        size = min(chunk, num_rows - first)
        keys = torch.empty(num_queries, size, dtype=torch.int64, device=query.device)
        score_key_kernel[(triton.cdiv(num_queries, options["ROWS"]), triton.cdiv(size, options["ROWS"]))](
            query, table, valid_V, keys, num_queries, num_rows, first, size, eps, **options
        )
        if exclude_rows is not None and exclude_offsets_R1 is not None and exclude_rows.numel():
            exclude_kernel[(triton.cdiv(exclude_rows.numel(), 128),)](
                exclude_rows.contiguous(), exclude_offsets_R1.contiguous(), keys, exclude_rows.numel(), num_queries,
                first, size, (num_queries + 1).bit_length(), BLOCK=128,
            )  # fmt: skip
        # Keys differ (their low bits are the row), so the best ones and their order are certain.
        keys = keys if best is None else torch.cat([best, keys], dim=1)
        best = torch.topk(keys, min(k, keys.shape[1]), dim=1, sorted=True).values
    scores = torch.empty(num_queries, k, dtype=torch.float32, device=query.device)
    rows = torch.empty(num_queries, k, dtype=torch.int64, device=query.device)
    if best is not None:
        decode_kernel[(triton.cdiv(best.numel(), 128),)](best.contiguous(), scores, rows, best.numel(), BLOCK=128)
    return scores, rows
