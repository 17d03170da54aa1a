"""The tensors of one FuXi-alpha layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class FuxiParams:
    """Weights of one layer; H heads, E value and D query/key width, M model width, F width of the second stage.

    ``uvqk_weight`` (M, H*(4E+2D)) projects to U (3HE), V, Q, K in this order. The biases are weights themselves: a
    value is added with ``pos_bias_P[i - j]`` in one channel, with ``time_bias_K[bucket]`` in another.
    """

    uvqk_weight: Tensor
    mix_weight: Tensor
    """(3*H*E, M): the first stage, over the channels of meaning, position and time"""
    mix_bias_M: Tensor
    gate_weight: Tensor
    """(M, F)"""
    up_weight: Tensor
    """(M, F)"""
    down_weight: Tensor
    """(F, M)"""
    pos_bias_P: Tensor
    time_bias_K: Tensor

    def widths(self, num_heads: int) -> tuple[int, int, int]:
        """(M, E, D). Raises ValueError if the shapes do not agree."""
        model, uvqk = self.uvqk_weight.shape
        channels, wide = self.mix_weight.shape[0], self.gate_weight.shape[-1]
        rest = uvqk - 4 * (channels // 3)
        expected = {
            "mix_weight": (channels, model), "mix_bias_M": (model,), "gate_weight": (model, wide),
            "up_weight": (model, wide), "down_weight": (wide, model),
        }  # fmt: skip
        if channels % (3 * num_heads) or rest <= 0 or rest % (2 * num_heads):
            raise ValueError(
                f"FuxiParams: expected uvqk_weight (M, H*(4E+2D)) and mix_weight (3*H*E, M) with H = {num_heads}, got "
                f"{tuple(self.uvqk_weight.shape)} and {tuple(self.mix_weight.shape)}"
            )
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"FuxiParams.{name}: expected {shape}, got {tuple(getattr(self, name).shape)}")
        return model, channels // (3 * num_heads), rest // (2 * num_heads)
