"""The HSTU: interleaved item and action tokens in, predictions of what the user does next out.

"Actions Speak Louder than Words" (Zhai et al., ICML 2024), with two differences that make caching possible: attention
is divided by a constant of the configuration, and positions enter only pairwise (docs/architecture.md).

Tokens of n interactions: Φ₀, a₀, Φ₁, a₁, … (T = 2n). The output at Φⱼ predicts the kinds of action on that item
(ranking); the output at aⱼ₋₁ predicts the next item (retrieval), asked at the time of the next interaction. For a user
without history a learnt start vector takes the place of that output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from kernels import BucketCache, Tail, TimeBuckets
from model.config import ModelConfig
from model.layers import BLOCKS, FuxiLayer
from model.lookup import added_at, rows_at
from model.rates import NUM_PRIORS


class HSTU(nn.Module):
    """All dense weights. The caller supplies embedding rows: training gathers them, serving holds whole tables."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width, direction = config.model_width, config.item_width - 1
        self.layers = nn.ModuleList(BLOCKS[config.block](config) for _ in range(config.num_layers))
        self.item_weight = nn.Parameter(torch.empty(config.item_width, width))
        self.kind_KM = nn.Parameter(torch.empty(len(config.kinds), width))
        self.action_M = nn.Parameter(torch.zeros(width))
        self.action_item_weight = nn.Parameter(torch.empty(width, width))
        self.value_M = nn.Parameter(torch.zeros(2, width))
        self.start_M = nn.Parameter(torch.zeros(width))
        self.query_weight = nn.Parameter(torch.empty(width, direction))
        self.query_bias = nn.Parameter(torch.zeros(direction))
        self.rank_weight = nn.Parameter(torch.empty(width, len(config.kinds)))
        self.rank_bias_K = nn.Parameter(torch.zeros(len(config.kinds)))
        self.rank_prior_PK = nn.Parameter(torch.zeros(NUM_PRIORS, len(config.kinds)))
        self.rank_norm_weight_M = nn.Parameter(torch.ones(width))
        self.rank_norm_bias_M = nn.Parameter(torch.zeros(width))
        if config.predict_value:
            self.value_out_M = nn.Parameter(torch.zeros(width))
            self.value_mean = nn.Parameter(torch.zeros(1))
        self.time_buckets = TimeBuckets.logarithmic(config.num_time_buckets, unit_ms=config.time_unit_ms)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(self.named_parameters()):
            if parameter.dim() == 2 and not name.endswith(("_GP", "_GK", "value_M", "kind_KM")):
                std = 1.0 / math.sqrt(parameter.shape[0])
                nn.init.normal_(parameter, std=std, generator=generator)
        # Ranking starts from the item's own rate, which gradients would take long to learn.
        nn.init.zeros_(self.rank_weight)
        nn.init.ones_(self.rank_prior_PK[0])
        nn.init.normal_(self.kind_KM, std=0.02, generator=generator)
        nn.init.normal_(self.start_M, std=0.02, generator=generator)
        for layer in self.layers:
            if isinstance(layer, FuxiLayer):  # its biases are weights, which must not all be zero
                nn.init.normal_(layer.pos_bias_P, std=0.02, generator=generator)
                nn.init.normal_(layer.time_bias_K, std=0.02, generator=generator)

    def item_inputs(self, item_nD: Tensor, side_nM: Tensor | None = None) -> Tensor:
        """Item rows (n, D) and the sum of domain and feature rows (n, M), or None → item tokens (n, M)."""
        tokens_nM = item_nD @ self.item_weight
        return tokens_nM if side_nM is None else tokens_nM + side_nM

    def action_inputs(self, item_nM: Tensor, kinds_nK: Tensor, value_n: Tensor | None = None) -> Tensor:
        """Item tokens (n, M), kinds done (n, K) as 0 or 1, and values (n,), NaN for none → action tokens (n, M)."""
        action_nM = self.action_M + kinds_nK @ self.kind_KM + item_nM @ self.action_item_weight
        if not self.config.use_value or value_n is None:
            return action_nM
        present = torch.isfinite(value_n)
        scaled = log_value(torch.where(present, value_n, torch.zeros_like(value_n)))
        return action_nM + torch.stack([present.to(scaled.dtype), scaled], dim=1) @ self.value_M

    def tokens(
        self,
        item_UD: Tensor,
        place_n: Tensor,
        kinds_nK: Tensor,
        value_n: Tensor | None = None,
        side_nM: Tensor | None = None,
    ) -> Tensor:
        """Tokens (2n, M) of n interactions on the items ``item_UD[place_n]``: `item_inputs` and `action_inputs`,
        interleaved."""
        if self.config.use_value:
            item_nM = self.item_inputs(rows_at(place_n, item_UD), side_nM)
            return self.interleave(item_nM, self.action_inputs(item_nM, kinds_nK, value_n))
        tokens_TM: Tensor = _Tokens.apply(
            item_UD, self.item_weight, self.action_M, self.kind_KM, self.action_item_weight, side_nM, place_n, kinds_nK
        )
        return tokens_TM

    @staticmethod
    def interleave(item_nM: Tensor, action_nM: Tensor) -> Tensor:
        """(n, M) and (n, M) → (2n, M): item, action, item, action, …"""
        return torch.stack([item_nM, action_nM], dim=1).reshape(-1, item_nM.shape[1])

    def encode(
        self,
        x_TM: Tensor,
        offsets_B1: Tensor,
        query_time_T: Tensor,
        key_time_T: Tensor,
        *,
        tail: Tail | None = None,
        context_gradient: bool = True,
        dropouts: Sequence[float] = (),
        seed: int = 0,
        in_order: bool | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """Tokens through all layers: (T, M) → (T, M). Times in ms, int64.

        ``tail``: the tokens whose outputs are needed; only those are returned (S, M). Without ``context_gradient`` the
        other tokens' outputs of all layers but the last are constants, and gradients reach them only through the last
        layer's keys and values. ``in_order``: whether every user's key times never decrease, if the caller knows (else
        it is read from the device). ``dropouts``: each layer's; none if empty.
        """
        cache, last = BucketCache(in_order=in_order), len(self.layers) - 1  # the layers share the batch's time buckets
        for index, layer in enumerate(self.layers):
            x_TM = layer(
                x_TM,
                offsets_B1,
                time_buckets=self.time_buckets,
                query_time_T=query_time_T,
                key_time_T=key_time_T,
                bucket_cache=cache,
                tail=tail if index == last or not context_gradient else None,
                only_tail=index == last,
                dropout=dropouts[index] if dropouts else 0.0,
                seed=seed * 64 + index,
                backend=backend,
            )
        return x_TM

    def rank_logits(self, y_RM: Tensor, prior_RPK: Tensor | None) -> Tensor:
        """Outputs at item tokens (R, M) and the prior from rates (`Rates.prior`) → logits (R, K), one per kind; without
        a prior, only the network's part of them."""
        logits_RK = self._normed(y_RM) @ self.rank_weight + self.rank_bias_K
        return logits_RK if prior_RPK is None else logits_RK + (prior_RPK * self.rank_prior_PK).sum(dim=1)

    def values(self, y_RM: Tensor) -> Tensor:
        """Outputs at item tokens (R, M) → what is expected of each value (R,), on the scale of `log_value`; for a model
        with ``predict_value``. The mean of all values so far is counted, not learned: gradients would take long."""
        return self._normed(y_RM) @ self.value_out_M + self.value_mean.detach()

    def _normed(self, y_RM: Tensor) -> Tensor:
        return F.layer_norm(y_RM, y_RM.shape[1:], self.rank_norm_weight_M, self.rank_norm_bias_M, self.config.norm_eps)

    def retrieval_query(self, y_RM: Tensor) -> Tensor:
        """Outputs at action tokens (R, M) → queries (R, D); their inner products with `retrieval_table` are logits."""
        direction = unit_rows(torch.addmm(self.query_bias, y_RM, self.query_weight), self.config.item_width - 1)
        return F.pad(direction / self.config.temperature, (0, 1), value=self.config.bias_scale)

    def retrieval_table(self, item_UD: Tensor) -> Tensor:
        """Item rows (U, D) → their scoring form (U, D): unit direction, then the item's bias."""
        return unit_rows(item_UD, self.config.item_width - 1)


def log_value(value: Tensor) -> Tensor:
    """The scale on which values enter and are predicted: sign(v) · log(1 + |v|)."""
    return torch.sign(value) * torch.log1p(value.abs())


def from_log_value(scaled: Tensor) -> Tensor:
    """The inverse of `log_value`."""
    return torch.sign(scaled) * torch.expm1(scaled.abs())


def unit_rows(x_ND: Tensor, width: int, eps: float = 1e-6) -> Tensor:
    """The first ``width`` columns of each row divided by their norm (at least ``eps``); the rest unchanged."""
    unit_ND: Tensor = _UnitRows.apply(x_ND, width, eps)
    return unit_ND


class _Tokens(torch.autograd.Function):
    """`HSTU.tokens` without values, with its gradient written out: in small live steps autograd took half the time."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        item_UD, item_weight, action_M, kind_KM, action_item_weight, side_nM, place_n, kinds_nK = inputs
        item_nD = item_UD.index_select(0, place_n)
        tokens_n2M = item_nD.new_empty(len(place_n), 2, item_weight.shape[1])
        item_nM = item_nD @ item_weight if side_nM is None else torch.addmm(side_nM, item_nD, item_weight)
        tokens_n2M[:, 0] = item_nM
        torch.addmm(torch.addmm(action_M, kinds_nK, kind_KM), item_nM, action_item_weight, out=tokens_n2M[:, 1])
        ctx.save_for_backward(item_nD, item_nM, item_weight, action_item_weight, place_n, kinds_nK)
        ctx.num_rows = len(item_UD)
        return torch.flatten(tokens_n2M, 0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the rows, of the weights and of the side inputs."""
        item_nD, item_nM, item_weight, action_item_weight, place_n, kinds_nK = ctx.saved_tensors
        grad_n2M = grads[0].view(-1, 2, item_weight.shape[1])
        action_nM = grad_n2M[:, 1].contiguous()
        grad_nM = torch.addmm(grad_n2M[:, 0], action_nM, action_item_weight.T)
        rows_UD = None
        if ctx.needs_input_grad[0]:
            rows_UD = added_at(place_n, grad_nM @ item_weight.T, ctx.num_rows)
        return (
            rows_UD, item_nD.T @ grad_nM, action_nM.sum(0), kinds_nK.T @ action_nM, item_nM.T @ action_nM,
            grad_nM if ctx.needs_input_grad[5] else None, None, None,
        )  # fmt: skip


class _UnitRows(torch.autograd.Function):
    """`unit_rows` with its gradient written out: every step puts the whole catalogue through it, forward and backward,
    and autograd would pass over it three times as often."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, width: int, eps: float) -> Tensor:
        inverse_N1 = torch.linalg.vector_norm(x_ND[:, :width], dim=1, keepdim=True).clamp_min_(eps).reciprocal_()
        unit_ND = torch.mul(x_ND, inverse_N1)  # whole rows: only part of the columns costs twice as much
        unit_ND[:, width:] = x_ND[:, width:]
        ctx.save_for_backward(unit_ND, inverse_N1)
        ctx.width, ctx.eps = width, eps
        return unit_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The part of the gradient that is orthogonal to the direction, divided by the norm."""
        unit_ND, inverse_N1 = ctx.saved_tensors
        grad_ND, width = grads[0], ctx.width
        product_ND = grad_ND * unit_ND
        product_ND[:, width:] = 0.0
        along_N1 = product_ND.sum(dim=1, keepdim=True).mul_(inverse_N1 < 1.0 / ctx.eps)
        across_ND = torch.addcmul(grad_ND, along_N1, unit_ND, value=-1, out=product_ND).mul_(inverse_N1)
        across_ND[:, width:] = grad_ND[:, width:]
        return across_ND, None, None
