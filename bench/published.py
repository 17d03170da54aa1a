"""HSTU's published experiment on MovieLens-1M: many passes, base or large.

MovieLens-1M, leave one out, ranking all items except those of the input, many passes over whole sequences: the protocol
and configuration of Zhai et al. (ICML 2024, section 4.1.1), with this project's layers and losses. ``--state`` is
written after each epoch and resumed from, so that a long run can be made in pieces. ``--sequences FILE.npz`` stores the
sequences; with it, torch and NumPy are enough (and Triton, on a GPU). ``--quick`` is two epochs.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.options import parser_of
from bench.output.report import machine, report
from kernels import BucketCache, TimeBuckets, hstu_layer, sampled_softmax
from model.config import ModelConfig
from model.layers import Layer

Int64 = NDArray[np.int64]
LENGTH, WIDTH, BATCH, NEGATIVES, TEMPERATURE, EPOCHS = 200, 50, 128, 128, 0.05, 101
NORM_LEN, DROPOUT, LR, BETAS, EPS = 211.0, 0.2, 1e-3, (0.9, 0.98), 1e-6
TARGETS = {"base": (0.3097, 0.1720), "large": (0.3294, 0.1893)}
"""The published HR@10 and NDCG@10."""


@dataclass(frozen=True, slots=True, eq=False)
class Users:
    """Concatenated sequences, each in time order: user u's is ``starts[u]:starts[u + 1]``. Items count from 1."""

    starts: Int64
    item: Int64
    time_ms: Int64

    @property
    def num_items(self) -> int:
        """The number of users."""
        return int(self.item.max())

    def batch(self, users: Int64, *, last: int) -> Batch:
        """For each user, the ``LENGTH`` interactions before the ``last`` ones, which are never read. The target of an
        interaction is the one that follows it."""
        ends = self.starts[users + 1] - last
        firsts = np.maximum(self.starts[users], ends - 1 - LENGTH)
        lengths = np.maximum(ends - 1 - firsts, 0)
        offsets = np.append(0, np.cumsum(lengths))
        at = np.arange(offsets[-1]) + np.repeat(firsts - offsets[:-1], lengths)
        made = (self.item[at], self.item[at + 1], self.time_ms[at], self.time_ms[at + 1], offsets)
        return Batch(*(torch.from_numpy(each) for each in made))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """T interactions of B users: items, next items, times, times of the next items, offsets (B+1,)."""

    item_T: Tensor
    target_T: Tensor
    time_T: Tensor
    next_time_T: Tensor
    offsets_B1: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__slots__))


def published_layer(shape: ModelConfig, *, has_biases: bool = True) -> Layer:
    """A layer as the authors begin it. ``has_biases``: of positions and times; without, its tables stay unused."""
    layer = Layer(shape)
    for table in (layer.uvqk_weight, layer.pos_bias_GP, layer.time_bias_GK):
        nn.init.normal_(table, std=0.02)
    nn.init.xavier_uniform_(layer.out_weight)
    absent = (layer.uvqk_bias, layer.norm_in_weight_M, layer.norm_in_bias_M, layer.norm_out_weight, layer.norm_out_bias)
    for each in absent if has_biases else (*absent, layer.pos_bias_GP, layer.time_bias_GK):
        each.requires_grad_(False)  # the published layer does not have these
    return layer


class ItemNetwork(nn.Module):
    """A network whose queries are scored by their products with the items' rows, ``item_VD``."""

    item_VD: nn.Parameter


class Published(ItemNetwork):
    """Embeddings with learned positions, HSTU layers, cosines."""

    def __init__(self, num_items: int, *, large: bool, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers, heads = (8, 2) if large else (2, 1)
        self.num_heads = heads
        shape = ModelConfig(
            model_width=WIDTH, num_heads=heads, qk_width=WIDTH // heads, value_width=WIDTH // heads,
            num_positions=LENGTH + 11, num_time_buckets=64,
        )  # fmt: skip
        self.time_buckets = TimeBuckets.logarithmic(64)
        self.item_VD = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_items + 1, WIDTH), std=0.02))
        self.position_LD = nn.Parameter(nn.init.trunc_normal_(torch.empty(LENGTH + 11, WIDTH), std=WIDTH**-0.5))
        self.layers = nn.ModuleList(published_layer(shape) for _ in range(layers))

    def forward(self, batch: Batch, *, seed: int = 0) -> Tensor:
        """(T, WIDTH) the query after each interaction; ``seed`` above 0: with dropout."""
        starts_T = torch.repeat_interleave(batch.offsets_B1[:-1], batch.offsets_B1.diff())
        place_T = torch.arange(len(batch.item_T), device=starts_T.device) - starts_T
        x_TM = self.item_VD[batch.item_T] * WIDTH**0.5 + self.position_LD[place_T]
        dropout = DROPOUT if seed else 0.0
        x_TM, cache = nn.functional.dropout(x_TM, dropout, training=bool(seed)), BucketCache()
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x_TM = hstu_layer(
                x_TM, layer.params(), batch.offsets_B1, num_heads=self.num_heads, norm_len=NORM_LEN,
                pos_bias_GP=layer.pos_bias_GP, time_bias_GK=layer.time_bias_GK, time_buckets=self.time_buckets,
                query_time_T=batch.next_time_T, key_time_T=batch.time_T, bucket_cache=cache, dropout=dropout,
                seed=seed * 64 + number, eps=EPS,
            )  # fmt: skip
        return x_TM


class Experiment:
    """The model, its optimiser and its progress."""

    def __init__(self, users: Users, *, large: bool, seed: int, device: str) -> None:
        self.users, self.seed, self.device, self.large = users, seed, torch.device(device), large
        self.model: ItemNetwork = Published(users.num_items, large=large, seed=seed).to(self.device)
        self.optimiser = torch.optim.AdamW(
            [each for each in self.model.parameters() if each.requires_grad], lr=LR, betas=BETAS, weight_decay=0.0
        )
        self.num_epochs, self.num_steps = 0, 0
        self.history: list[dict[str, float]] = []

    def epoch(self) -> float:
        """One pass over all users in a random order; the mean loss."""
        order = np.random.default_rng([self.seed, self.num_epochs]).permutation(len(self.users.starts) - 1)
        losses = [self.step(order[first : first + BATCH]) for first in range(0, len(order), BATCH)]
        self.num_epochs += 1
        return float(np.mean(losses))

    def step(self, users: Int64) -> float:
        """Learn the next items in these users' sequences, except the last one of each."""
        self.num_steps += 1
        torch.manual_seed(self.seed * 1_000_003 + self.num_steps)
        batch = self.users.batch(users, last=1).to(self.device)
        query_TM = self.model(batch, seed=self.num_steps)
        shape = (len(batch.target_T), NEGATIVES)
        negatives_TS = torch.randint(1, self.users.num_items + 1, shape, device=self.device)
        return self.descend(query_TM, batch.target_T, negatives_TS)

    def descend(self, query_TM: Tensor, target_T: Tensor, negatives_TS: Tensor) -> float:
        """A step along the gradient of the mean sampled softmax loss, which is returned."""
        loss = sampled_softmax(
            query_TM, self.model.item_VD, target_T, negatives_TS, temperature=TEMPERATURE, normalize=True
        ).mean()
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimiser.step()
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The rank of each user's last item among all that are not in the user's input."""
        ranks = []
        for first in range(0, len(self.users.starts) - 1, BATCH):
            users = np.arange(first, min(first + BATCH, len(self.users.starts) - 1))
            batch = self.users.batch(users, last=0).to(self.device)
            last_B = batch.offsets_B1[1:] - 1
            query_BD = nn.functional.normalize(self.model(batch)[last_B], dim=1)
            score_BV = query_BD @ nn.functional.normalize(self.model.item_VD, dim=1).T
            score_BV[:, 0] = -torch.inf
            owner_T = torch.repeat_interleave(torch.arange(len(users), device=self.device), batch.offsets_B1.diff())
            target_B = batch.target_T[last_B]
            mine_B1 = score_BV.gather(1, target_B[:, None])
            score_BV[owner_T, batch.item_T] = -torch.inf
            score_BV.scatter_(1, target_B[:, None], -torch.inf)
            better_B, equal_B = (score_BV > mine_B1).sum(dim=1), (score_BV == mine_B1).sum(dim=1)
            ranks.append(1 + better_B + (equal_B + 1) // 2)
        rank_U = torch.cat(ranks).cpu().numpy()
        hit_U = rank_U <= 10
        return {
            "hr10": float(hit_U.mean()), "hr50": float((rank_U <= 50).mean()), "mrr": float((1 / rank_U).mean()),
            "ndcg10": float(np.where(hit_U, 1 / np.log2(1 + rank_U), 0.0).mean()),
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write the state with one atomic rename."""
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "history": self.history,
                 "num_epochs": self.num_epochs, "num_steps": self.num_steps}  # fmt: skip
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """The inverse of `save`."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.num_epochs, self.num_steps, self.history = state["num_epochs"], state["num_steps"], state["history"]


def sequences(actions: Any) -> Users:
    """The sequences of a stream in time order."""
    of_user: dict[str, list[tuple[int, int]]] = {}
    number_of: dict[str, int] = {}
    for action in actions:
        item = number_of.setdefault(str(action["item"]), len(number_of) + 1)
        of_user.setdefault(str(action["user"]), []).append((item, action["timestamp"]))
    whole = [each for each in of_user.values() if len(each) > 2]
    pairs = np.array([pair for each in whole for pair in each], np.int64)
    starts = np.append(0, np.cumsum([len(each) for each in whole]))
    return Users(starts, pairs[:, 0].copy(), pairs[:, 1].copy())


def _users(options: argparse.Namespace) -> Users:
    path: Path | None = options.sequences
    if path is not None and path.is_file():
        kept = np.load(path)
        return Users(kept["starts"], kept["item"], kept["time_ms"])
    from bench.streams.named import open_stream

    users = sequences(open_stream(options.stream, options.data))
    if path is not None:
        np.savez(path, starts=users.starts, item=users.item, time_ms=users.time_ms)
    return users


def command(arguments: list[str]) -> int:
    """The experiment; its last line is one JSON object."""
    parser = parser_of("published", __doc__)
    parser.add_argument("stream", nargs="?", default="ml-1m")
    parser.add_argument("--data", type=Path, help="the folder that holds the stream's file")
    parser.add_argument("--sequences", type=Path, help="keep the sequences in this file, and read them from there")
    parser.add_argument("--large", action="store_true", help="eight layers of two heads, not two of one")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--evaluate-every", type=int, default=10, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no epoch after this long")
    parser.add_argument("--state", type=Path, help="written after each epoch, and resumed from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    torch.set_float32_matmul_precision("high")
    started = time.monotonic()
    experiment = Experiment(_users(options), large=options.large, seed=options.seed, device=options.device)
    if options.state and options.state.is_file():
        experiment.load(options.state)
    num_epochs = 2 if options.quick else options.epochs
    while experiment.num_epochs < num_epochs and time.monotonic() - started < options.seconds:
        loss = experiment.epoch()
        if experiment.num_epochs % options.evaluate_every == 0 or experiment.num_epochs == num_epochs:
            experiment.history.append({"epoch": experiment.num_epochs, "loss": loss, **experiment.evaluate()})
            print(experiment.history[-1], file=sys.stderr, flush=True)
        if options.state:
            experiment.save(options.state)
    return report(
        "published", arguments, _rows(options.stream, experiment), options.out, epochs=experiment.num_epochs,
        seconds=round(time.monotonic() - started, 1), device=device_name(experiment.device), history=experiment.history,
    )  # fmt: skip


def device_name(device: torch.device) -> str:
    """The device that it computes on."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else machine()


def _rows(stream: str, experiment: Experiment) -> list[dict[str, Any]]:
    size = "large" if experiment.large else "base"
    last = experiment.history[-1] if experiment.history else experiment.evaluate()
    names = zip(("hr10", "ndcg10"), ("HR@10", "NDCG@10"), TARGETS[size], strict=True)
    return [
        {"name": f"{stream}: HSTU as published, {size}", "value": round(last[name], 4), "unit": unit, "target": target,
         "met": last[name] >= target, "note": f"after {experiment.num_epochs} epochs"}
        for name, unit, target in names
    ]  # fmt: skip
