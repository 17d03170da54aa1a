"""A whole training step on one core: two layers of width 50, 128 negatives, AdamW and row-wise Adagrad.

The peer is the published model, padded and eager, with 128 negatives of its own for each position and AdamW over
everything. Ours uses the same negatives, or the same number shared by the batch, from the same table. Memory is the
peak above what importing takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.on_cpu.batches import Users, full_batch
from bench.peers import hstu as peer
from bench.timing import ARITHMETIC, Row, Work, at_precision, kernel_share, row, take_turns
from kernels import BucketCache, LayerParams, TimeBuckets, hstu_layer, rowwise_adagrad_, sampled_softmax

WIDTH, NUM_ITEMS, NUM_NEGATIVES, NUM_LAYERS = 50, 3706, 128, 2


def peer_step(users: Users) -> Work:
    """One step of the padded eager model."""
    table = nn.Parameter(torch.randn(NUM_ITEMS, WIDTH) * 0.02)
    positions = nn.Parameter(torch.randn(users.padded, WIDTH) * 0.02)
    layers = nn.ModuleList(peer.Layer(WIDTH, users.padded) for _ in range(NUM_LAYERS))
    optimizer = torch.optim.AdamW([table, positions, *layers.parameters()], lr=1e-3)
    items = torch.randint(0, NUM_ITEMS, (users.num_tokens,))
    items_BN, times_BN = users.pad(items), users.pad(users.times)
    valid_BN1 = users.pad(torch.ones(users.num_tokens))[..., None]
    negatives = torch.randint(0, NUM_ITEMS, (users.num_tokens, NUM_NEGATIVES))
    keep = valid_BN1[..., 0].bool()

    def work() -> None:
        optimizer.zero_grad()
        x = (nn.functional.embedding(items_BN, table) + positions) * valid_BN1
        for layer in layers:
            x = layer(x, times_BN, valid_BN1)
        torch.autograd.backward(peer.sampled_softmax(x[keep], table, items, negatives))
        optimizer.step()

    return work


def _weights() -> list[nn.Parameter]:
    shapes = [(WIDTH,), (WIDTH,), (WIDTH, 4 * WIDTH), (4 * WIDTH,), (WIDTH,), (WIDTH,), (WIDTH, WIDTH), (WIDTH,)]
    starts = [1.0, 0.0, None, 0.0, 1.0, 0.0, None, 0.0]
    return [
        nn.Parameter(torch.randn(shape) * 0.02 if start is None else torch.full(shape, start))
        for shape, start in zip(shapes, starts, strict=True)
    ]


def our_step(users: Users, arithmetic: str, *, shared: bool) -> Work:
    """One step of ours."""
    dtype, precision = ARITHMETIC[arithmetic]
    table, state = torch.randn(NUM_ITEMS, WIDTH) * 0.02, torch.zeros(NUM_ITEMS)
    weights = [_weights() for _ in range(NUM_LAYERS)]
    pos = [nn.Parameter(torch.randn(1, users.padded) * 0.02) for _ in range(NUM_LAYERS)]
    time = [nn.Parameter(torch.randn(1, peer.NUM_BUCKETS + 1) * 0.02) for _ in range(NUM_LAYERS)]
    optimizer = torch.optim.AdamW([*pos, *time, *(one for layer in weights for one in layer)], lr=1e-3)
    buckets = TimeBuckets.logarithmic(peer.NUM_BUCKETS + 1, unit_ms=1.0)
    items = torch.randint(0, NUM_ITEMS, (users.num_tokens,))
    size = (NUM_NEGATIVES,) if shared else (users.num_tokens, NUM_NEGATIVES)
    negatives, every_row = torch.randint(0, NUM_ITEMS, size), torch.arange(NUM_ITEMS)

    def work() -> None:
        optimizer.zero_grad()
        embedded = table.index_select(0, items).to(dtype).detach().requires_grad_()
        cache, x = BucketCache(), embedded
        for index in range(NUM_LAYERS):
            x = hstu_layer(
                x, LayerParams(*weights[index]), users.offsets, num_heads=1, norm_len=float(users.padded),
                pos_bias_GP=pos[index], time_bias_GK=time[index], time_buckets=buckets, query_time_T=users.times,
                key_time_T=users.times, bucket_cache=cache,
            )  # fmt: skip
        scored = table.to(dtype, copy=True).requires_grad_()
        torch.autograd.backward(sampled_softmax(x, scored, items, negatives, temperature=0.05).mean())
        assert scored.grad is not None
        assert embedded.grad is not None
        gradient = scored.grad.float().index_add_(0, items, embedded.grad.float())
        rowwise_adagrad_(table, state, every_row, gradient, lr=1e-2)
        optimizer.step()

    return at_precision(precision, work)


CONTENDERS: dict[str, Callable[[Users], Work]] = {
    "peer": peer_step,
    **{
        f"{name}, {negatives}": partial(our_step, arithmetic=name, shared=negatives == "shared negatives")
        for name in ARITHMETIC
        for negatives in ("the peer's negatives", "shared negatives")
    },
}


def peak_bytes(name: str) -> int:
    """A contender's peak resident memory in a process of its own, above what it has before the first step."""
    code = f"import sys; from bench.on_cpu.step import report_peak; report_peak({name!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(json.loads(run.stdout.splitlines()[-1]))


def report_peak(name: str) -> None:
    """Prints the peak of two steps (in the process of `peak_bytes`)."""
    torch.set_num_threads(1)
    step = CONTENDERS[name](full_batch())
    warm: Tensor = torch.randn(64, 64, requires_grad=True)
    torch.autograd.backward((warm @ warm).sum())
    before = _high_water_bytes()
    step()
    step()
    print(_high_water_bytes() - before)


def _high_water_bytes() -> int:
    """Peak resident memory of this process alone (getrusage would count its parent's before exec)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def rows(quick: bool) -> list[Row]:
    """The report's lines."""
    users = full_batch()
    torch.manual_seed(0)
    names = [name for name in CONTENDERS if not (quick and "bf16, the" in name)]
    contenders = {name: CONTENDERS[name](users) for name in names}
    seconds = take_turns(contenders, 1 if quick else 5, dict.fromkeys(names[1:], 3))
    peer_s, in_kernel = seconds.pop("peer"), kernel_share(contenders["peer"])
    result = []
    for name, own_s in seconds.items():
        target = 60.0 if name.startswith("bf16") else 35.0
        events = users.num_tokens / own_s
        note = (
            f"{peer_s * 1e3:.0f} ms / {own_s * 1e3:.1f} ms; {events:,.0f} events/s per core; {in_kernel:.0%} of the "
            f"peer's time is the operating system's, {peer_s * (1 - in_kernel) / own_s:.1f}x without it"
        )
        result.append(row(f"training step, {name}, over padded eager", peer_s / own_s, "x", target, note))
        if name.startswith("fp32"):
            result.append(row(f"training step, {name}", events, "events/s", 175_000.0))
    peer_bytes = peak_bytes("peer")
    for name in ("fp32, the peer's negatives", "fp32, shared negatives"):
        own = peak_bytes(name)
        note = f"{own / 2**20:.0f} MiB of {peer_bytes / 2**20:.0f} MiB, above an idle process"
        result.append(row(f"peak memory of a step, {name}", own / peer_bytes, "of the peer's", 0.125, note, most=True))
    return result
