"""The token embeddings of interactions, item and action alternating, and their backward pass beside autograd.

A live step is so small that autograd's bookkeeping costs more than the arithmetic.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from kernels.backend import choose
from kernels.dispatch import load
from kernels.tokens import reference
from kernels.tokens.params import TokenParams

__all__ = ["TokenParams", "token_gradients", "tokens"]


def tokens(
    table_VD: Tensor,
    place_n: Tensor,
    kinds_nK: Tensor,
    value_n: Tensor | None,
    side_nM: Tensor | None,
    params: TokenParams,
    *,
    backend: str = "auto",
) -> Tensor:
    """The tokens (2n, M). Only the reference supports autograd.

    Item: ``table_VD[place_n] @ item_weight`` (+ ``side_nM``). Action: ``action_M + kinds_nK @ kind_KM + item @
    action_item_weight``, and with ``value_n`` (NaN where there is none) its presence and signed logarithm times
    ``value_M``. float32, contiguous, the table of a type in `kernels.row_types`; ``place_n`` int64, within the table
    (not checked).

    Raises ValueError (shapes), `KernelUnavailable`.
    """
    _check(table_VD, place_n, kinds_nK, value_n, side_nM, params)
    if choose(backend, table_VD.device) == "reference":
        return reference.tokens(table_VD, place_n, kinds_nK, value_n, side_nM, params)
    made: Tensor = load("tokens", "cpp").tokens(table_VD, place_n, kinds_nK, value_n, side_nM, params)
    return made


def token_gradients(
    grad_TM: Tensor,
    tokens_TM: Tensor,
    table_VD: Tensor,
    place_n: Tensor,
    kinds_nK: Tensor,
    value_n: Tensor | None,
    params: TokenParams,
    gradients: TokenParams,
    d_table_VD: Tensor,
    d_side_nM: Tensor | None,
) -> None:
    """Backward pass of `tokens`, whose result is ``tokens_TM``, on the CPU in C++.

    Overwrites ``gradients`` and ``d_side_nM``, adds to ``d_table_VD``; the other arguments are those of `tokens`.

    Raises ValueError (shapes), `KernelUnavailable`.
    """
    _check(table_VD, place_n, kinds_nK, value_n, d_side_nM, params)
    if not (grad_TM.shape == tokens_TM.shape == (2 * len(place_n), params.action_M.shape[0])):
        raise ValueError(
            f"grad_TM, tokens_TM: expected {(2 * len(place_n), params.action_M.shape[0])}, got {tuple(grad_TM.shape)} "
            f"and {tuple(tokens_TM.shape)}"
        )
    load("tokens", "cpp").token_gradients(
        grad_TM, tokens_TM, table_VD, place_n, kinds_nK, value_n, params, gradients, d_table_VD, d_side_nM
    )


def _check(
    table_VD: Tensor, place_n: Tensor, kinds_nK: Tensor, value_n: Tensor | None, side_nM: Tensor | None,
    params: TokenParams,
) -> None:  # fmt: skip
    num, model = len(place_n), params.action_M.shape[0]
    expected = {
        "item_weight": (table_VD.shape[1], model), "action_M": (model,), "kind_KM": (kinds_nK.shape[1], model),
        "action_item_weight": (model, model), "value_M": (2, model),
    }  # fmt: skip
    for each in fields(params):
        tensor = getattr(params, each.name)
        if tensor is not None and tensor.shape != expected[each.name]:
            raise ValueError(f"{each.name}: expected {expected[each.name]}, got {tuple(tensor.shape)}")
    if place_n.dtype != torch.int64 or kinds_nK.shape[0] != num:
        raise ValueError(
            f"place_n, kinds_nK: expected (n,) int64 and (n, K), got {place_n.dtype} {tuple(kinds_nK.shape)}"
        )
    for name, tensor, shape in (("value_n", value_n, (num,)), ("side_nM", side_nM, (num, model))):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected {shape}, got {tuple(tensor.shape)}")
