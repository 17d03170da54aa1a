"""Sampled softmax and row-wise Adagrad on the GPU, beside eager PyTorch and the memory's bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.on_gpu.attention import CEILINGS, dtype_of
from bench.on_gpu.report import Clock, Row, row
from kernels import rank_of_target, rowwise_adagrad_, sampled_softmax, stochastic_length
from kernels.adagrad.triton_op import sort_rows, update_sorted

TEMPERATURE = 0.05


def eager_sampled_softmax(query: Tensor, table: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
    """The same loss as published: rows gathered and normalised, logits in memory."""
    query = functional.normalize(query.float(), dim=1)
    positive = functional.normalize(functional.embedding(target, table).float(), dim=1)
    rows = functional.normalize(functional.embedding(negatives, table).float(), dim=-1)
    own = (query * positive).sum(1, keepdim=True) / TEMPERATURE
    scores = query @ rows.T if negatives.dim() == 1 else torch.einsum("rd,rsd->rs", query, rows)
    scores = (scores / TEMPERATURE).masked_fill(negatives == target[:, None], float("-inf"))
    return torch.logsumexp(torch.cat([own, scores], 1), 1) - own[:, 0]


def peak_mib(clock: Clock, run: Callable[[], Any]) -> float:
    """Device memory used in addition to before."""
    if clock.rehearsal:
        run()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**20


def softmax(clock: Clock) -> Iterator[Row]:
    """8,192 rows × 512 negatives × d 256, shared and with a list per row."""
    rows, slots, width, table_rows = (8, 8, 16, 16) if clock.rehearsal else (8192, 512, 256, 8704)
    torch.manual_seed(3)
    query = torch.randn(rows, width, device=clock.device).to(dtype_of(clock)).requires_grad_()
    table = torch.randn(table_rows, width, device=clock.device).to(dtype_of(clock)).requires_grad_()
    target = torch.randint(0, table_rows, (rows,), device=clock.device)
    grad = torch.rand(rows, device=clock.device)
    for name, shape, goal in (("shared", (slots,), 5.0), ("own list a row", (rows, slots), None)):
        negatives = torch.randint(0, table_rows, shape, device=clock.device)

        def ours(negatives: Tensor = negatives) -> tuple[Tensor, ...]:
            loss = sampled_softmax(query, table, target, negatives, temperature=TEMPERATURE, backend="triton")
            return (loss, *torch.autograd.grad(loss, [query, table], grad))

        def eager(negatives: Tensor = negatives) -> tuple[Tensor, ...]:
            loss = eager_sampled_softmax(query, table, target, negatives)
            return (loss, *torch.autograd.grad(loss, [query, table], grad))

        pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours(), eager(), strict=True)]
        errors = [float((a - b).norm() / b.norm()) for a, b in pairs]
        yield row(f"error of sampled softmax, {name}", max(errors), "", 2e-2, at_most=True)
        ours_ms, eager_ms = clock.median_ms(ours), clock.median_ms(eager, repeats=5)
        memory, eager_memory = peak_mib(clock, ours), peak_mib(clock, eager)
        gradients = (query.numel() + table.numel()) * query.element_size() / 2**20
        note = f"{ours_ms:.3f} ms; eager {eager_ms:.3f}"
        yield row(f"sampled softmax 8192x512x256, {name}", eager_ms / ours_ms, "x eager", goal, note)
        if goal is not None:
            yield _as_graphs(clock, name, ours, eager, goal)
        yield row("  memory", memory, "MiB", note=f"eager {eager_memory:.0f}; gradients alone {gradients:.0f}")


def _as_graphs(
    clock: Clock, name: str, ours: Callable[[], Any], eager: Callable[[], Any], goal: float
) -> Row:  # fmt: skip
    """Both without the host's share, as within a trainer's graph."""
    try:
        ours_ms, eager_ms = clock.graph_ms(ours), clock.graph_ms(eager)
    except RuntimeError as failure:  # that one cannot be captured is a result too
        return row(f"  both as CUDA graphs, {name}", None, "x eager", note=f"failed: {failure!r}"[:300])
    note = f"{ours_ms:.3f} ms; eager {eager_ms:.3f}"
    return row(f"  both as CUDA graphs, {name}", eager_ms / ours_ms, "x eager", goal, note)


def adagrad(clock: Clock) -> Iterator[Row]:
    """1M touched rows of 128 in a table of 4M: all different, and with the repeats of popular items."""
    count, table_rows, width = (64, 256, 16) if clock.rehearsal else (1 << 20, 1 << 22, 128)
    weight = torch.randn(table_rows, width, device=clock.device)
    state = torch.zeros(table_rows, device=clock.device)
    grad = torch.randn(count, width, device=clock.device)
    rows = torch.randperm(table_rows, device=clock.device)[:count]
    zipf = (table_rows ** torch.rand(count, device=clock.device, dtype=torch.float64)).long() - 1
    yield _check_adagrad(clock)
    order = sort_rows(rows, table_rows)
    update_ms = clock.median_ms(lambda: update_sorted(weight, state, *order, grad, 0.01, 1e-8, 0.0))
    whole_ms = clock.median_ms(lambda: rowwise_adagrad_(weight, state, rows, grad, lr=0.01, backend="triton"))
    popular_ms = clock.median_ms(lambda: rowwise_adagrad_(weight, state, zipf, grad, lr=0.01, backend="triton"))
    num_bytes = count * (3 * width * 4 + 2 * 4 + 12)
    share = 100 * num_bytes / whole_ms * 1e3 / CEILINGS["bytes_per_s"]
    kernel = 100 * num_bytes / update_ms * 1e3 / CEILINGS["bytes_per_s"]
    note = f"{whole_ms:.3f} ms, {update_ms:.3f} without the sort ({kernel:.0f}%); popular rows {popular_ms:.3f} ms"
    yield row("row-wise Adagrad, 1M rows of 128, sort included", share, "% of copy", 70, note)


def _check_adagrad(clock: Clock) -> Row:
    rows = torch.randint(0, 50, (400,))
    grad, weight = torch.randn(400, 32), torch.randn(50, 32)
    pairs = []
    for device, backend in ((clock.device, "triton"), ("cpu", "reference")):
        table, state = weight.to(device, copy=True), torch.zeros(50, device=device)
        rowwise_adagrad_(table, state, rows.to(device), grad.to(device), lr=0.1, backend=backend)
        pairs.append(table.cpu())
    error = float((pairs[0] - pairs[1]).norm() / pairs[1].norm())
    return row("error of row-wise Adagrad", error, "", 1e-5, at_most=True)


def others(clock: Clock) -> Iterator[Row]:
    """Ranks over a large catalogue, and stochastic length of long users."""
    queries, table_rows, width = (8, 32, 16) if clock.rehearsal else (1024, 1_000_000, 64)
    query = torch.randn(queries, width, device=clock.device).to(dtype_of(clock))
    table = torch.randn(table_rows, width, device=clock.device).to(dtype_of(clock))
    target = torch.randint(0, table_rows, (queries,), device=clock.device)
    rank_ms = clock.median_ms(lambda: rank_of_target(query, table, target, backend="triton"), repeats=5)
    flops = 2 * queries * table_rows * width / rank_ms / 1e9
    yield row("rank of target, 1024 queries x 1M rows x d 64", rank_ms, "ms", note=f"{flops:.0f} TFLOP/s")
    users, length = (4, 40) if clock.rehearsal else (256, 8192)
    offsets = torch.arange(0, users * length + 1, length, device=clock.device)
    seeds = torch.arange(users, device=clock.device)
    kept = length // 16 * 2
    length_ms = clock.median_ms(lambda: stochastic_length(offsets, seeds, max_kept=kept, backend="triton"), repeats=5)
    yield row("stochastic length, 256 users of 8192", length_ms, "ms")
