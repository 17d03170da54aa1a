"""Losses and tables beside their peers on one core: contenders take turns, and medians are compared.

Seconds are processor time on one thread: equal to wall-clock time on a quiet machine, and not stretched by other
processes on a shared one.

Peers: the per-row negatives of HSTU's public training code, written here from its formula (normalised rows gathered to
(R, S, D), eager PyTorch); dense AdamW; FBGEMM's CPU table-batched embedding, in its own environment
(`bench.peers.fbgemm`); PyTorch's full logits, sort and top-k.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.peers.fbgemm import FbgemmWorker
from bench.timing import (
    ARITHMETIC,
    Row,
    Work,
    at_precision,
    copy_rate,
    gemm_rate,
    kernel_share,
    row,
    take_turns,
)
from kernels import IdMap, full_softmax, rank_of_target, rowwise_adagrad_, sampled_softmax, stochastic_length, top_k

TEMPERATURE = 0.05


def per_row_peer(query_RD: Tensor, table_UD: Tensor, target_R: Tensor, negatives_RS: Tensor) -> Tensor:
    """The published formula: every negative row gathered, normalised and scored; accidental hits get a very low
    score."""

    def unit(x: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.norm(x, dim=-1, keepdim=True)
        return x / norm.clamp(min=1e-6)

    query_RD = unit(query_RD)
    positive_R1 = (query_RD * unit(functional.embedding(target_R, table_UD))).sum(-1, keepdim=True) / TEMPERATURE
    negative_RSD = unit(functional.embedding(negatives_RS, table_UD))
    negative_RS = torch.bmm(negative_RSD, query_RD[:, :, None])[:, :, 0] / TEMPERATURE
    negative_RS = torch.where(target_R[:, None] == negatives_RS, -5e4, negative_RS)
    return -functional.log_softmax(torch.cat([positive_R1, negative_RS], dim=1), dim=1)[:, 0]


def forward_backward(loss: Callable[[Tensor, Tensor], Tensor], query_RD: Tensor, table_UD: Tensor) -> Work:
    """What a training step computes: the mean loss and both gradients."""

    def work() -> None:
        query_RD.grad = table_UD.grad = None
        torch.autograd.backward(loss(query_RD, table_UD).mean())

    return work


def sampled_rows(quick: bool, gemm_flops: float) -> list[Row]:
    """Sampled softmax at the peer's small configuration: 128 users of mean length 164, 128 negatives, d 50."""
    num_queries, num_rows, width, num_negatives = 128 * (20 if quick else 164), 3706, 50, 128
    query_RD, table_UD = torch.randn(num_queries, width), torch.randn(num_rows, width)
    target_R = torch.randint(0, num_rows, (num_queries,))
    shared_S = torch.randint(0, num_rows, (num_negatives,))
    lists_RS = torch.randint(0, num_rows, (num_queries, num_negatives))

    def ours(negatives: Tensor, arithmetic: str) -> Work:
        dtype, precision = ARITHMETIC[arithmetic]
        inputs = (query_RD.to(dtype, copy=True).requires_grad_(), table_UD.to(dtype, copy=True).requires_grad_())
        work = forward_backward(
            lambda q, t: sampled_softmax(q, t, target_R, negatives, temperature=TEMPERATURE), *inputs
        )
        return at_precision(precision, work)

    peer = forward_backward(
        lambda q, t: per_row_peer(q, t, target_R, lists_RS),
        query_RD.clone().requires_grad_(),
        table_UD.clone().requires_grad_(),
    )
    targets = {"per row, fp32": 70.0, "shared, fp32": 400.0, "shared, fp32 high": 400.0}
    contenders = {"peer": peer}
    for arithmetic in ARITHMETIC:
        contenders[f"shared, {arithmetic}"] = ours(shared_S, arithmetic)
        if arithmetic != "fp32 high":  # lists are multiplied with vectors, whatever the precision
            contenders[f"per row, {arithmetic}"] = ours(lists_RS, arithmetic)
    times = take_turns(contenders, 3)
    in_kernel = kernel_share(peer)
    flops = 3 * 2 * num_queries * num_negatives * width
    rows = []
    for name in list(contenders)[1:]:
        share = flops / times[name] / gemm_flops
        plain = times["peer"] * (1 - in_kernel) / times[name]
        note = (
            f"{times['peer'] * 1e3:.0f} ms / {times[name] * 1e3:.1f} ms; products at {share:.0%} of this core's GEMM; "
        )
        note += f"{plain:.0f}x without the {in_kernel:.0%} of the peer's time that is the operating system's"
        rows.append(
            row(f"sampled softmax, {name}, over eager", times["peer"] / times[name], "x", targets.get(name), note)
        )
    return rows


def full_rows(quick: bool) -> list[Row]:
    """The whole catalogue: loss, rank and best rows, beside versions that keep the logits in memory."""
    num_queries, num_rows, width = (256 if quick else 1024), 20_000, 64
    query_RD, table_VD = torch.randn(num_queries, width), torch.randn(num_rows, width)
    target_R = torch.randint(0, num_rows, (num_queries,))
    leaves = (query_RD.clone().requires_grad_(), table_VD.clone().requires_grad_())

    def eager_loss(q: Tensor, t: Tensor) -> Tensor:
        return functional.cross_entropy(
            functional.normalize(q) @ functional.normalize(t).T / TEMPERATURE, target_R, reduction="none"
        )

    def eager_rank() -> object:
        score_RV = query_RD @ functional.normalize(table_VD).T
        return (score_RV > score_RV.gather(1, target_R[:, None])).sum(1)

    contenders: dict[str, Work] = {
        "loss, eager": forward_backward(eager_loss, *leaves),
        "loss": forward_backward(lambda q, t: full_softmax(q, t, target_R, temperature=TEMPERATURE), *leaves),
        "rank, eager": eager_rank,
        "rank": lambda: rank_of_target(query_RD, table_VD, target_R),
        "best 100, eager": lambda: (query_RD @ functional.normalize(table_VD).T).topk(100),
        "best 100": lambda: top_k(query_RD, table_VD, 100),
    }
    times = take_turns(contenders, 3)
    rows = []
    for name in ("loss", "rank", "best 100"):
        eager_s = times[f"{name}, eager"]
        note = f"{eager_s * 1e3:.0f} ms / {times[name] * 1e3:.1f} ms; {num_queries} x {num_rows} x d {width}"
        rows.append(row(f"full catalogue {name}, over eager logits", eager_s / times[name], "x", None, note))
    return rows


def adagrad_rows(quick: bool, copy_bytes: float) -> list[Row]:
    """1M x 64 table, 121,000 rows drawn, about 114,000 of them different."""
    num_rows, width, num = 1_000_000, 64, 121_000
    weight_VD, state_V = torch.randn(num_rows, width), torch.rand(num_rows)
    rows_N, grad_ND = torch.randint(0, num_rows, (num,)), torch.randn(num, width)
    num_unique = len(np.unique(rows_N.numpy()))
    dense = torch.nn.Parameter(torch.randn(num_rows, width))
    dense.grad = torch.zeros(num_rows, width).index_add_(0, rows_N, grad_ND)
    adamw = torch.optim.AdamW([dense], lr=0.01)
    contenders: dict[str, Work] = {
        "ours": lambda: rowwise_adagrad_(weight_VD, state_V, rows_N, grad_ND, lr=0.01),
        "AdamW": adamw.step,
        "dense gradient": lambda: torch.zeros(num_rows, width).index_add_(0, rows_N, grad_ND),
    }
    with FbgemmWorker.start(num_rows, width, num, install=not quick) as worker:
        if worker.available:
            contenders["FBGEMM"] = worker.backward_seconds
        times = take_turns(contenders, 3 if quick else 7)
    moved = num * width * 4 + num_unique * (2 * width * 4 + 2 * 64)
    ours = times["ours"]
    share = moved / ours / copy_bytes
    at = f"ours {ours * 1e3:.1f} ms, {share:.0%} of this core's copy rate; {num_unique} different rows"
    fbgemm = times.get("FBGEMM")
    fbgemm_note = f"FBGEMM {fbgemm * 1e3:.0f} ms (backward and update); {at}" if fbgemm else worker.why_not
    dense_s = times["AdamW"] + times["dense gradient"]  # from the same rows and gradients
    adamw_note = (
        f"AdamW.step {times['AdamW'] * 1e3:.0f} ms, dense gradient {times['dense gradient'] * 1e3:.0f} ms; {at}"
    )
    return [
        row("row-wise Adagrad over FBGEMM CPU", fbgemm and fbgemm / ours, "x", 4.0, fbgemm_note),
        row("row-wise Adagrad over dense AdamW and its gradient", dense_s / ours, "x", 45.0, adamw_note),
        row("row-wise Adagrad over AdamW.step alone", times["AdamW"] / ours, "x"),
    ]


def id_map_rows(quick: bool) -> list[Row]:
    """10M ids in batches of 10,000, beside PyTorch reading the same number of random cache lines."""
    num_ids, size = (1_000_000 if quick else 10_000_000), 10_000
    rng = np.random.default_rng(0)
    ids = rng.integers(-(2**63), 2**63 - 1, num_ids)
    table = IdMap(num_ids)
    began = time.process_time()
    table.insert(ids, 0)
    build_s = time.process_time() - began
    batches = rng.choice(ids, (64, size))
    lines, picks = torch.zeros(num_ids // 4, 16), torch.randint(0, num_ids // 4, (64, size))
    turn = iter(range(1 << 30))
    contenders: dict[str, Work] = {
        "lookup": lambda: table.lookup(batches[next(turn) % 64]),
        "insert known": lambda: table.insert(batches[next(turn) % 64], 1),
        "random lines": lambda: torch.index_select(lines, 0, picks[next(turn) % 64]),
    }
    times = take_turns(contenders, 60)
    label = f"{num_ids // 1_000_000}M ids, batches of {size}"
    line_rate = size / times["random lines"] / 1e6
    rate = size / times["lookup"] / 1e6
    return [
        row("id map look-ups", rate, "M/s", 20.0, f"{label}; PyTorch reads {line_rate:.0f}M random cache lines/s"),
        row("id map sightings of known ids", size / times["insert known"] / 1e6, "M/s", None, label),
        row("id map new ids", num_ids / build_s / 1e6, "M/s", None, label),
    ]


def length_rows() -> list[Row]:
    """Stochastic length of 128 contexts of 100 to 4,000 interactions."""
    units_B = torch.randint(100, 4000, (128,))
    offsets_B1 = torch.cat([torch.zeros(1, dtype=torch.int64), (2 * units_B).cumsum(0)])
    seeds_B = torch.arange(128)
    times = take_turns({"ours": lambda: stochastic_length(offsets_B1, seeds_B, max_kept=400)}, 9)
    return [row("stochastic length", int(units_B.sum()) / times["ours"] / 1e6, "M interactions/s")]


def rows(quick: bool) -> list[Row]:
    """The report's lines."""
    return [
        *sampled_rows(quick, gemm_rate(torch.float32)),
        *full_rows(quick),
        *adagrad_rows(quick, copy_rate()),
        *id_map_rows(quick),
        *length_rows(),
    ]
