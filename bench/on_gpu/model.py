# mypy: allow-untyped-calls, disable-error-code="arg-type,operator,index"
"""The same HSTU twice: jagged on our kernels, and padded in eager PyTorch, as in published research code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.on_gpu.ops import TEMPERATURE, eager_sampled_softmax
from kernels import BucketCache, LayerParams, TimeBuckets, hstu_layer, rowwise_adagrad_, sampled_softmax


@dataclass(frozen=True)
class Shape:
    """A model and a batch; ``lengths``: tokens of each user."""

    layers: int
    width: int
    heads: int
    lengths: tuple[int, ...]
    num_items: int
    num_negatives: int
    num_buckets: int = 64

    @property
    def padded(self) -> int:
        """The longest user."""
        return max(self.lengths)


class Weights(nn.Module):
    """Weights of both: (M, 4M) to U, V, Q, K, biases per head, all in one dtype."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.shape = shape
        width, heads = shape.width, shape.heads

        def parameter(tensor: Tensor) -> nn.Parameter:
            return nn.Parameter(tensor.to(device, dtype))

        self.layers = nn.ModuleList()
        for _ in range(shape.layers):
            layer = nn.Module()
            layer.norm_in_weight_M = parameter(torch.ones(width))
            layer.norm_in_bias_M = parameter(torch.zeros(width))
            layer.uvqk_weight = parameter(torch.randn(width, 4 * width) / math.sqrt(width))
            layer.norm_out_weight = parameter(torch.ones(width))
            layer.norm_out_bias = parameter(torch.zeros(width))
            layer.out_weight = parameter(torch.randn(width, width) / math.sqrt(width))
            layer.pos_bias_GP = parameter(torch.randn(heads, shape.padded) * 0.1)
            layer.time_bias_GK = parameter(torch.randn(heads, shape.num_buckets) * 0.1)
            self.layers.append(layer)
        self.buckets = TimeBuckets.logarithmic(shape.num_buckets)

    def jagged(self, x_TM: Tensor, offsets: Tensor, time_T: Tensor, in_order: bool | None = None) -> Tensor:
        """(T, M) through the kernels."""
        cache = BucketCache(in_order=in_order)
        for layer in self.layers:
            params = LayerParams(
                layer.norm_in_weight_M, layer.norm_in_bias_M, layer.uvqk_weight, None,
                layer.norm_out_weight, layer.norm_out_bias, layer.out_weight, None,
            )  # fmt: skip
            x_TM = hstu_layer(
                x_TM, params, offsets, num_heads=self.shape.heads, norm_len=float(self.shape.padded),
                pos_bias_GP=layer.pos_bias_GP, time_bias_GK=layer.time_bias_GK, time_buckets=self.buckets,
                query_time_T=time_T, key_time_T=time_T, bucket_cache=cache, backend="triton",
            )  # fmt: skip
        return x_TM

    def dense(self, x_BNM: Tensor, time_BN: Tensor) -> Tensor:
        """(B, N, M), padded: scores, bias and weights of every pair in memory."""
        users, length, width = x_BNM.shape
        heads = self.shape.heads
        place = torch.arange(length, device=x_BNM.device)
        distance = (place[:, None] - place[None, :]).clamp(min=0)
        mask = place[:, None] >= place[None, :]
        delta = time_BN[:, :, None] - time_BN[:, None, :]
        bucket = (delta.clamp(min=1000).float() / 1000).log().div(0.301).long().clamp(0, self.shape.num_buckets - 1)
        for layer in self.layers:
            normed = functional.layer_norm(x_BNM, (width,), layer.norm_in_weight_M, layer.norm_in_bias_M, 1e-6)
            u, v, q, k = functional.silu(normed @ layer.uvqk_weight).split(width, dim=-1)
            v, q, k = (x.view(users, length, heads, -1) for x in (v, q, k))
            scores = torch.einsum("bnhd,bmhd->bhnm", q, k) + layer.pos_bias_GP[:, distance]
            # index_select, as published: the backward of indexing with brackets sorts.
            by_time = layer.time_bias_GK.index_select(1, bucket.view(-1)).view(heads, users, length, length)
            scores = scores + by_time.transpose(0, 1)
            weights = functional.silu(scores) / length * mask
            attended = torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(users, length, width)
            gated = functional.layer_norm(attended, (width,), layer.norm_out_weight, layer.norm_out_bias, 1e-6) * u
            x_BNM = x_BNM + gated @ layer.out_weight
        return x_BNM


BATCH = ("items_T", "target_T", "time_T", "offsets", "negatives", "valid_T")
"""The fields of `Data` that differ between batches in padded memory."""


@dataclass(eq=False)
class Data:
    """One batch, jagged and padded."""

    items_T: Tensor
    target_T: Tensor
    time_T: Tensor
    offsets: Tensor
    negatives: Tensor
    valid_BN: Tensor
    valid_T: Tensor | None = None
    """1 / tokens for real tokens, 0 for the padding at the end (`Data.with_padding`)."""

    def with_padding(self, num_tokens: int) -> Data:
        """The same users, padded to ``num_tokens`` tokens."""
        own = len(self.items_T)
        more = num_tokens - own
        valid = torch.full((own,), 1.0 / own, device=self.items_T.device)
        jagged = [functional.pad(values, (0, more)) for values in (self.items_T, self.target_T, valid)]
        times = torch.cat([self.time_T, self.time_T[-1:].expand(more)])
        return Data(jagged[0], jagged[1], times, self.offsets, self.negatives, self.valid_BN, jagged[2])

    def copy_(self, other: Data) -> None:
        """Take another batch's values, in place; of the same padded size and number of users."""
        for name in BATCH:
            getattr(self, name).copy_(getattr(other, name))

    def pad(self, values_T: Tensor) -> Tensor:
        """(B, N), zero in the padding."""
        padded = values_T.new_zeros(self.valid_BN.shape)
        padded[self.valid_BN] = values_T
        return padded


def make_data(shape: Shape, device: str) -> Data:
    """Random items; times with bursts."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor(shape.lengths)
    total = int(lengths.sum())
    items = torch.randint(0, shape.num_items, (total,), generator=generator)
    gap = (10 ** (torch.rand(total, generator=generator, dtype=torch.float64) * 7)).long()
    time = 10**12 + (gap * (torch.rand(total, generator=generator) < 0.5)).cumsum(0)
    negatives = torch.randint(0, shape.num_items, (shape.num_negatives,), generator=generator)
    valid = torch.arange(shape.padded)[None, :] < lengths[:, None]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    tensors = (items, items.roll(-1), time, offsets, negatives, valid)
    return Data(*(tensor.to(device) for tensor in tensors))


class Step:
    """Forward, loss, backward, AdamW for the dense weights, row-wise Adagrad for the table (ours, or its formula)."""

    def __init__(self, shape: Shape, data: Data, device: str, dtype: torch.dtype) -> None:
        self.shape, self.data = shape, data
        self.weights = Weights(shape, device, dtype)
        self.table = (torch.randn(shape.num_items, shape.width, device=device) * 0.02).to(dtype)
        self.state = torch.zeros(shape.num_items, device=device)
        self.optimiser = torch.optim.AdamW(
            self.weights.parameters(), lr=1e-3, fused=device != "cpu", capturable=device != "cpu"
        )
        self.in_order: bool | None = None
        self.encode_dense: Callable[[Tensor, Tensor], Tensor] = self.weights.dense
        self.dense_loss: Callable[..., Tensor] = eager_sampled_softmax

    def compile(self) -> None:
        """torch.compile for the padded version."""
        self.encode_dense = torch.compile(self.weights.dense)
        self.dense_loss = torch.compile(eager_sampled_softmax)

    def loss(self, ours: bool) -> tuple[Tensor, Tensor]:
        """(mean loss, the leaf of table rows that gets gradients)."""
        data = self.data
        leaf = self.table.detach().requires_grad_()
        x_TM = functional.embedding(data.items_T, leaf)
        if ours:
            y_TM = self.weights.jagged(x_TM, data.offsets, data.time_T, self.in_order)
            loss_T = sampled_softmax(
                y_TM, leaf, data.target_T, data.negatives, temperature=TEMPERATURE, backend="triton"
            )
            return (loss_T * data.valid_T).sum() if data.valid_T is not None else loss_T.mean(), leaf
        x_BNM = functional.embedding(data.pad(data.items_T), leaf) * data.valid_BN[:, :, None]
        y_TM = self.encode_dense(x_BNM, data.pad(data.time_T))[data.valid_BN]
        return self.dense_loss(y_TM, leaf, data.target_T, data.negatives).mean(), leaf

    def run(self, ours: bool) -> None:
        """One training step."""
        self.optimiser.zero_grad(set_to_none=True)
        loss, leaf = self.loss(ours)
        loss.backward()
        assert leaf.grad is not None
        self.optimiser.step()
        if ours:
            touched = torch.arange(self.shape.num_items, device=leaf.device)
            rowwise_adagrad_(self.table, self.state, touched, leaf.grad, lr=0.01, backend="triton")
        else:
            grad = leaf.grad.float()
            self.state += (grad * grad).mean(1)
            self.table -= (0.01 * grad / (self.state.sqrt() + 1e-8)[:, None]).to(self.table.dtype)

    def capture(self) -> Callable[[Data], None]:
        """The whole step as one CUDA graph for batches of the padded size; returns a function that runs it."""
        self.data = replace(self.data, **{name: getattr(self.data, name).clone() for name in BATCH})
        self.in_order = True  # otherwise the device is queried, which a graph cannot do
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.run(True)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimiser.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run(True)

        def replay(data: Data) -> None:
            self.data.copy_(data)
            graph.replay()

        return replay
