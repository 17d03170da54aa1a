"""The layers that a network may consist of, each with two ways through it: all tokens of a batch at once in training,
and new tokens after cached keys and values in serving."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kernels import LayerParams, delta_attention, hstu_layer
from kernels.fuxi import FuxiParams, channel_biases, fuxi_delta_attention, fuxi_layer, fuxi_output, fuxi_project
from kernels.layer import hstu_layer_history, hstu_layer_output, hstu_layer_project
from model.config import ModelConfig

Projected = tuple[Tensor, Tensor, Tensor, Tensor]
"""U, of any shape; V (T, H, E); Q and K (T, H, D)."""


class Layer(nn.Module):
    """The weights of one HSTU layer, with its relative biases of position (H, P) and time (H, K)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.model_width, config.num_heads
        inner, projected = heads * config.value_width, 2 * heads * (config.value_width + config.qk_width)
        self.norm_in_weight_M = nn.Parameter(torch.ones(width))
        self.norm_in_bias_M = nn.Parameter(torch.zeros(width))
        self.uvqk_weight = nn.Parameter(torch.empty(width, projected))
        self.uvqk_bias = nn.Parameter(torch.zeros(projected))
        self.norm_out_weight = nn.Parameter(torch.ones(inner))
        self.norm_out_bias = nn.Parameter(torch.zeros(inner))
        self.out_weight = nn.Parameter(torch.empty(inner, width))
        self.out_bias = nn.Parameter(torch.zeros(width))
        self.pos_bias_GP = nn.Parameter(torch.zeros(heads, config.num_positions))
        self.time_bias_GK = nn.Parameter(torch.zeros(heads, config.num_time_buckets))

    def params(self) -> LayerParams:
        """The weights as the kernels take them (the attention's biases are passed separately)."""
        return LayerParams(
            norm_in_weight_M=self.norm_in_weight_M,
            norm_in_bias_M=self.norm_in_bias_M,
            uvqk_weight=self.uvqk_weight,
            uvqk_bias=self.uvqk_bias,
            norm_out_weight=self.norm_out_weight,
            norm_out_bias=self.norm_out_bias,
            out_weight=self.out_weight,
            out_bias=self.out_bias,
        )

    def forward(self, x_TM: Tensor, offsets_B1: Tensor, **options: Any) -> Tensor:
        """`kernels.hstu_layer`; ``options``: times, tail, dropout, caches, backend."""
        config = self.config
        return hstu_layer(
            x_TM, self.params(), offsets_B1, num_heads=config.num_heads, norm_len=config.norm_len,
            pos_bias_GP=self.pos_bias_GP, time_bias_GK=self.time_bias_GK, eps=config.norm_eps, **options,
        )  # fmt: skip

    def biases(self) -> tuple[Tensor, Tensor]:
        """Tables of position (G, P) and time (G, K) for `attend`."""
        return self.pos_bias_GP, self.time_bias_GK

    def history(self, x_TM: Tensor, offsets_B1: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """`kernels.hstu_layer_history`; ``options``: times, tail, cache, backend."""
        config = self.config
        return hstu_layer_history(
            x_TM, self.params(), offsets_B1, num_heads=config.num_heads, norm_len=config.norm_len,
            pos_bias_GP=self.pos_bias_GP, time_bias_GK=self.time_bias_GK, eps=config.norm_eps, **options,
        )  # fmt: skip

    def project(self, x_SM: Tensor, backend: str) -> Projected:
        """The inputs of attention for new tokens."""
        config = self.config
        return hstu_layer_project(
            x_SM, self.params(), num_heads=config.num_heads, eps=config.norm_eps, backend=backend
        )  # fmt: skip

    def attend(self, *inputs: Tensor, backend: str, **pairs: Any) -> Tensor:
        """`kernels.delta_attention`."""
        return delta_attention(*inputs, norm_len=self.config.norm_len, backend=backend, **pairs)

    def output(self, x_SM: Tensor, attended: Tensor, u: Tensor, backend: str) -> Tensor:
        """(S, M) the layer's output for new tokens."""
        return hstu_layer_output(x_SM, attended, u, self.params(), eps=self.config.norm_eps, backend=backend)


class FuxiLayer(nn.Module):
    """The weights of one FuXi-alpha layer (`kernels.fuxi`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, wide = config.model_width, config.num_heads, config.ffn_width or config.model_width
        inner = heads * config.value_width
        self.uvqk_weight = nn.Parameter(torch.empty(width, 4 * inner + 2 * heads * config.qk_width))
        self.mix_weight = nn.Parameter(torch.empty(3 * inner, width))
        self.mix_bias_M = nn.Parameter(torch.zeros(width))
        self.gate_weight = nn.Parameter(torch.empty(width, wide))
        self.up_weight = nn.Parameter(torch.empty(width, wide))
        self.down_weight = nn.Parameter(torch.empty(wide, width))
        self.pos_bias_P = nn.Parameter(torch.zeros(config.num_positions))
        self.time_bias_K = nn.Parameter(torch.zeros(config.num_time_buckets))

    def params(self) -> FuxiParams:
        """The weights as `kernels.fuxi` takes them."""
        return FuxiParams(
            self.uvqk_weight, self.mix_weight, self.mix_bias_M, self.gate_weight, self.up_weight, self.down_weight,
            self.pos_bias_P, self.time_bias_K,
        )  # fmt: skip

    def forward(self, x_TM: Tensor, offsets_B1: Tensor, **options: Any) -> Tensor:
        """`kernels.fuxi.fuxi_layer`; see `Layer.forward`."""
        config = self.config
        return fuxi_layer(
            x_TM, self.params(), offsets_B1, num_heads=config.num_heads, norm_len=config.norm_len, eps=config.norm_eps,
            **options,
        )  # fmt: skip

    def biases(self) -> tuple[Tensor, Tensor]:
        """See `Layer.biases`."""
        return channel_biases(self.pos_bias_P, self.time_bias_K)

    def project(self, x_SM: Tensor, backend: str) -> Projected:
        """See `Layer.project`."""
        del backend
        return fuxi_project(x_SM, self.params(), num_heads=self.config.num_heads, eps=self.config.norm_eps)

    def attend(self, *inputs: Tensor, backend: str, **pairs: Any) -> Tensor:
        """`kernels.fuxi.fuxi_delta_attention`."""
        return fuxi_delta_attention(*inputs, norm_len=self.config.norm_len, backend=backend, **pairs)

    def output(self, x_SM: Tensor, attended: Tensor, u: Tensor, backend: str) -> Tensor:
        """See `Layer.output`."""
        del backend
        return fuxi_output(x_SM, attended, u, self.params(), eps=self.config.norm_eps)


BLOCKS: dict[str, type[Layer | FuxiLayer]] = {"hstu": Layer, "fuxi": FuxiLayer}
"""By `ModelConfig.block`."""
