"""The model's forward and backward pass on the CPU without autograd: from the catalogue's rows to both losses and back.

A live step has a few dozen targets: autograd's bookkeeping and a hundred small operations took longer than the
arithmetic. Here a step is one call of C++ for the tokens and for each layer, forward and again backward, and one for
the heads; each writes the gradients of its own weights where the optimiser reads them. The results are those of `HSTU`
and `trainer.network.losses`, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels import Tail
from kernels.heads import HeadInputs, HeadOutputs, HeadParams, HeadRules, heads
from kernels.layer.cpp import Batch, backward_pass, forward_pass, make_batch
from kernels.tokens import TokenParams, token_gradients, tokens
from model.hstu import HSTU
from model.layers import Layer


@dataclass(frozen=True, slots=True, eq=False)
class DirectInputs:
    """A batch of n interactions: their rows of the catalogue, their actions, and the times of their tokens; and which
    of the layers' outputs are read (``tail``). ``head``: the heads' inputs except for these outputs."""

    table_VD: Tensor
    place_n: Tensor
    kinds_nK: Tensor
    value_n: Tensor
    side_nM: Tensor | None
    offsets_B1: Tensor
    query_time_T: Tensor
    key_time_T: Tensor
    tail: Tail
    seed: int
    head: Callable[[Tensor], HeadInputs]
    """Outputs (S, M) → the heads' inputs."""
    rank_factor: float = 1.0
    """The weight of the ranking loss in the gradients."""
    when_predicted: Callable[[HeadOutputs], None] | None = None
    """Called with predictions and losses, before the layers' gradients are computed."""


@dataclass(frozen=True, slots=True, eq=False)
class DirectOutputs:
    """``heads``: predictions, losses, and the catalogue's whole gradient. ``d_side_nM``: that of the side inputs."""

    heads: HeadOutputs
    d_side_nM: Tensor | None


class DirectPass:
    """Passes of one model. All of its parameters must have gradients (``parameter.grad``), which are overwritten."""

    def __init__(
        self,
        model: HSTU,
        *,
        rank_share: float,
        feedback: str,
        context_gradient: bool,
        dropouts: Sequence[float],
    ) -> None:
        config = model.config
        self._config = config
        self._rules = HeadRules(
            config.temperature, config.bias_scale, config.norm_eps, rank_share=rank_share, feedback=feedback
        )
        way = _KernelLayers if config.block == "hstu" else _AutogradLayers
        self._layers = way(model, context_gradient, dropouts)
        self._tokens, self._token_gradients = (_token_params(model, each) for each in (_values, _slopes))
        self._heads, self._head_gradients = (_head_params(model, each) for each in (_values, _slopes))

    def __call__(self, inputs: DirectInputs) -> DirectOutputs:
        """Predictions and losses; where torch computes gradients, those of all parameters are written too."""
        value_n = inputs.value_n if self._config.use_value else None
        given = inputs.table_VD, inputs.place_n, inputs.kinds_nK, value_n
        x_TM = tokens(*given, inputs.side_nM, self._tokens)
        y_SM, back = self._layers.through(x_TM, inputs)
        rules = self._rules
        if inputs.rank_factor != 1.0:
            rules = replace(rules, rank_share=rules.rank_share * inputs.rank_factor)
        found = heads(inputs.head(y_SM), self._heads, rules, self._head_gradients if torch.is_grad_enabled() else None)
        if inputs.when_predicted is not None:
            inputs.when_predicted(found)
        if found.d_y_SM is None or found.d_table_VD is None:
            return DirectOutputs(found, None)
        d_TM = back(found.d_y_SM)
        d_side_nM = None if inputs.side_nM is None else torch.empty_like(inputs.side_nM)
        token_gradients(d_TM, x_TM, *given, self._tokens, self._token_gradients, found.d_table_VD, d_side_nM)
        return DirectOutputs(found, d_side_nM)


Back = Callable[[Tensor], Tensor]
"""The gradient of a batch's outputs (S, M) → that of its tokens (T, M); the weights' gradients are written."""


class _KernelLayers:
    """HSTU's layers: one call of C++ each way."""

    def __init__(self, model: HSTU, context_gradient: bool, dropouts: Sequence[float]) -> None:
        self._config, self._thresholds = model.config, model.time_buckets
        self._context_gradient, self._dropouts = context_gradient, dropouts
        layers = [layer for layer in model.layers if isinstance(layer, Layer)]
        self._weights = [_held(layer, _values) for layer in layers]
        self._gradients = [_held(layer, _slopes) for layer in layers]

    def through(self, x_TM: Tensor, inputs: DirectInputs) -> tuple[Tensor, Back]:
        """Outputs (S, M), and the way back."""
        batches, kept, y_TM = self._batches(inputs), list[tuple[Tensor, Tensor]](), x_TM
        for batch, held in zip(batches, self._weights, strict=True):
            before_TM = y_TM
            y_TM, attended = forward_pass(batch, before_TM, held)
            kept.append((before_TM, attended))

        def back(d_SM: Tensor) -> Tensor:
            d_TM = d_SM
            for index in reversed(range(len(batches))):
                before_TM, attended = kept[index]
                d_TM = backward_pass(
                    batches[index], before_TM, attended, self._weights[index], d_TM, self._gradients[index]
                )
            return d_TM

        return y_TM, back

    def _batches(self, inputs: DirectInputs) -> list[Batch]:
        config, num_layers = self._config, len(self._weights)
        is_last = [index == num_layers - 1 for index in range(num_layers)]
        return make_batch(
            inputs.offsets_B1, num_heads=config.num_heads, norm_len=config.norm_len, time_buckets=self._thresholds,
            query_time_T=inputs.query_time_T, key_time_T=inputs.key_time_T, eps=config.norm_eps,
            dropouts=self._dropouts, seeds=[inputs.seed * 64 + index for index in range(num_layers)],
            tails=[inputs.tail if last or not self._context_gradient else None for last in is_last], only_tail=is_last,
        )  # fmt: skip


class _AutogradLayers:
    """Any other layers."""

    def __init__(self, model: HSTU, context_gradient: bool, dropouts: Sequence[float]) -> None:
        self._encode, self._context_gradient, self._dropouts = model.encode, context_gradient, dropouts
        self._gradients = [_slopes(each) for each in model.layers.parameters()]

    def through(self, x_TM: Tensor, inputs: DirectInputs) -> tuple[Tensor, Back]:
        """See `_KernelLayers.through`."""
        x_TM = x_TM.detach().requires_grad_(torch.is_grad_enabled())
        y_SM = self._encode(
            x_TM, inputs.offsets_B1, inputs.query_time_T, inputs.key_time_T, tail=inputs.tail,
            context_gradient=self._context_gradient, dropouts=self._dropouts, seed=inputs.seed,
        )  # fmt: skip

        def back(d_SM: Tensor) -> Tensor:
            for gradient in self._gradients:
                gradient.zero_()  # autograd adds to the gradients
            torch.autograd.backward(y_SM, d_SM)
            assert x_TM.grad is not None
            return x_TM.grad

        return y_SM.detach(), back


def _values(parameter: Tensor) -> Tensor:
    return parameter.detach()


def _slopes(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "the optimiser gives every parameter a gradient"
    return parameter.grad


def _held(layer: Layer, of: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    params = layer.params()
    weights = [getattr(params, name) for name in params.__dataclass_fields__]
    return [of(each) for each in (*weights, layer.pos_bias_GP, layer.time_bias_GK)]


def _token_params(model: HSTU, of: Callable[[Tensor], Tensor]) -> TokenParams:
    value_M = of(model.value_M) if model.config.use_value else None
    return TokenParams(
        of(model.item_weight), of(model.action_M), of(model.kind_KM), of(model.action_item_weight), value_M
    )


def _head_params(model: HSTU, of: Callable[[Tensor], Tensor]) -> HeadParams:
    return HeadParams(
        start_M=of(model.start_M), query_weight=of(model.query_weight), query_bias=of(model.query_bias),
        rank_weight=of(model.rank_weight), rank_bias_K=of(model.rank_bias_K), rank_prior_PK=of(model.rank_prior_PK),
        norm_weight_M=of(model.rank_norm_weight_M), norm_bias_M=of(model.rank_norm_bias_M),
    )  # fmt: skip
