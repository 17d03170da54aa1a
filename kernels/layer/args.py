"""The C++ layer's arguments: a mirror of the struct in ``csrc/layer.h``, field by field."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels import library
from kernels.backend import KernelUnavailable
from kernels.layer.dropout import threshold

WEIGHTS = (
    "norm_in_weight",
    "norm_in_bias",
    "uvqk_weight",
    "uvqk_bias",
    "norm_out_weight",
    "norm_out_bias",
    "out_weight",
    "out_bias",
)
"""The weights, in the order of `LayerParams`."""


MAX_WIDTH = 4096
"""The widest row that blocks.h normalises."""


class LayerArgs(ctypes.Structure):
    """``HeadraceLayer``."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("tokens", "model", "value", "key", "num_threads", "is_bf16")],
        ("eps", ctypes.c_double),
        ("dropout_threshold", ctypes.c_int64),
        ("dropout_scale", ctypes.c_double),
        ("seed", ctypes.c_int64),
        ("token_offsets", ctypes.c_void_p),
        *[(name, ctypes.c_void_p) for name in ("x", "attended", "dy", "y", "dx", "z", "z_out", "k_out", "v_out")],
        *[(name, ctypes.c_void_p) for name in WEIGHTS],
        *[(f"d_{name}", ctypes.c_void_p) for name in WEIGHTS],
    ]

    @classmethod
    def of(
        cls, x_TM: Tensor, weights: list[Tensor | None], *, dropout: float = 0.0, seed: int = 0, eps: float
    ) -> LayerArgs:
        """Sizes, weights (as `table` returns them; the caller keeps them alive) and dropout."""
        uvqk, out = weights[2], weights[6]
        assert uvqk is not None
        assert out is not None
        value = out.shape[0]
        if max(x_TM.shape[1], value) > MAX_WIDTH:
            raise KernelUnavailable(
                f"hstu_layer in C++: expected model and values of at most {MAX_WIDTH} columns, got {x_TM.shape[1]} and "
                f"{value}; use fewer, or ask for backend='reference'"
            )
        args = cls(
            tokens=x_TM.shape[0],
            model=x_TM.shape[1],
            value=value,
            key=uvqk.shape[1] // 2 - value,
            num_threads=library.num_threads(),
            is_bf16=x_TM.dtype == torch.bfloat16,
            eps=eps,
            dropout_threshold=threshold(dropout),
            dropout_scale=1.0 / (1.0 - dropout),
            seed=_signed(seed),
            x=x_TM.data_ptr(),
        )
        for name, weight in zip(WEIGHTS, weights, strict=True):
            setattr(args, name, library.address(weight))
        return args

    def receive(self, gradients: list[Tensor | None]) -> None:
        """Set where the gradients of the weights go (float32, in the order of `LayerParams`)."""
        for name, gradient in zip(WEIGHTS, gradients, strict=True):
            setattr(self, f"d_{name}", library.address(gradient))


def _signed(seed: int) -> int:
    """A seed's low 64 bits as a signed number, for ctypes."""
    return (seed + 2**63) % 2**64 - 2**63
