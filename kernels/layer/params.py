"""The tensors of one HSTU layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerParams:
    """Weights of one layer; H heads, E value and D query/key width, M model width.

    ``uvqk_weight`` (M, H*(2E+2D)) projects to U, V, Q, K in this order, heads within each.
    """

    norm_in_weight_M: Tensor
    norm_in_bias_M: Tensor
    uvqk_weight: Tensor
    uvqk_bias: Tensor | None
    norm_out_weight: Tensor
    """(H*E,)"""
    norm_out_bias: Tensor
    """(H*E,)"""
    out_weight: Tensor
    """(H*E, M)"""
    out_bias: Tensor | None
    """(M,)"""

    def widths(self, num_heads: int) -> tuple[int, int, int]:
        """(M, E, D). Raises ValueError if the shapes do not agree."""
        model, uvqk = self.uvqk_weight.shape
        value, model_out = self.out_weight.shape
        rest = uvqk - 2 * value
        if model != model_out or value % num_heads or rest <= 0 or rest % (2 * num_heads):
            raise ValueError(
                f"LayerParams: expected uvqk_weight (M, H*(2E+2D)) and out_weight (H*E, M) with H = {num_heads}, got "
                f"{tuple(self.uvqk_weight.shape)} and {tuple(self.out_weight.shape)}"
            )
        expected = {
            "norm_in_weight_M": model,
            "norm_in_bias_M": model,
            "uvqk_bias": uvqk,
            "norm_out_weight": value,
            "norm_out_bias": value,
            "out_bias": model,
        }
        for name, size in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != (size,):
                raise ValueError(f"LayerParams.{name}: expected ({size},), got {tuple(tensor.shape)}")
        return model, value // num_heads, rest // (2 * num_heads)
