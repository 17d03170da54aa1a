"""The heads in C++: both losses and all their gradients in one call."""

from __future__ import annotations

import ctypes
from dataclasses import fields

import torch
from torch import Tensor

from kernels.heads.params import FEEDBACK, HeadInputs, HeadOutputs, HeadParams, HeadRules
from kernels.library import function, num_threads
from kernels.row_types import type_of

_WEIGHTS = tuple(each.name for each in fields(HeadParams))
_INPUTS = (
    "y_SM", "output_R", "output_Q", "table_VD", "valid_V", "target_Q", "prior_RPK", "learned_RK", "is_new_R",
)  # fmt: skip
_SIZES = (
    "num_outputs", "model", "width", "num_rows", "num_kinds", "num_priors", "num_targets", "num_queries",
    "logit_stride", "table_type", "num_threads",
)  # fmt: skip
_COLUMNS = 32
"""Rows of logits are a multiple of this long: whole panels of any level."""


class _Call(ctypes.Structure):
    """``HeadsCall`` of csrc/level/heads.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in (*_INPUTS, *_WEIGHTS)),
        *((name, ctypes.c_void_p) for name in ("logit_QV", "logit_RK", "query_QD", "loss", "d_y_SM", "d_table_VD")),
        *((f"d_{name}", ctypes.c_void_p) for name in _WEIGHTS),
        *((name, ctypes.c_double) for name in ("norm_eps", "unit_eps", "temperature", "bias_scale", "rank_share")),
        ("feedback", ctypes.c_int64),
    )


def heads(inputs: HeadInputs, params: HeadParams, rules: HeadRules, gradients: HeadParams | None) -> HeadOutputs:
    """See `kernels.heads.heads`."""
    num_outputs, model = inputs.y_SM.shape
    num_rows, width = inputs.table_VD.shape
    num_targets, num_kinds = inputs.learned_RK.shape
    num_queries, stride = len(inputs.output_Q), -(-num_rows // _COLUMNS) * _COLUMNS
    logit_QV, logit_RK = torch.empty((num_queries, stride)), torch.empty((num_targets, num_kinds))
    query_QD = torch.empty((num_queries, width))
    loss = (ctypes.c_float * 2)()
    call = _Call(
        num_outputs=num_outputs, model=model, width=width, num_rows=num_rows, num_kinds=num_kinds,
        num_priors=len(params.rank_prior_PK), num_targets=num_targets, num_queries=num_queries, logit_stride=stride,
        table_type=type_of(inputs.table_VD), num_threads=num_threads(),
        logit_QV=logit_QV.data_ptr(), logit_RK=logit_RK.data_ptr(),
        query_QD=query_QD.data_ptr(), loss=ctypes.addressof(loss), norm_eps=rules.norm_eps, unit_eps=rules.unit_eps,
        temperature=rules.temperature,
        bias_scale=rules.bias_scale, rank_share=rules.rank_share, feedback=FEEDBACK.index(rules.feedback),
    )  # fmt: skip
    for name in _INPUTS:
        setattr(call, name, getattr(inputs, name).data_ptr())
    for name in _WEIGHTS:
        setattr(call, name, getattr(params, name).data_ptr())
    d_y_SM: Tensor | None = None
    d_table_VD: Tensor | None = None
    if gradients is not None:
        d_y_SM, d_table_VD = torch.empty((num_outputs, model)), torch.empty((num_rows, width))
        call.d_y_SM, call.d_table_VD = d_y_SM.data_ptr(), d_table_VD.data_ptr()
        for name in _WEIGHTS:
            setattr(call, f"d_{name}", getattr(gradients, name).data_ptr())
    if function("heads")(ctypes.byref(call)):
        raise MemoryError("heads: no memory for its scratch; use smaller batches")
    return HeadOutputs(logit_QV[:, :num_rows], logit_RK, query_QD, loss[0], loss[1], d_y_SM, d_table_VD)
