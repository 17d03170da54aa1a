"""The softmax losses in C++.

The forward pass also computes the gradients of the mean loss; the backward pass of the mean uses the query's as it is,
and one with equal weights (a sum) scales them. Different weights for the losses cost another pass.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from kernels.backend import KernelUnavailable
from kernels.library import address, function, num_threads
from kernels.softmax.check import check_range

SMALL = 4096
"""With at most this many shared negatives, the scores of a block of queries fit into the processor's cache."""
_MAX_WIDTH = 4096
_OUTSIDE = 2  # what a function returns for a list with rows outside the table
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_POINTERS = (
    "target_R",
    "negatives",
    "valid_V",
    "log_q_target_R",
    "log_q_negatives",
    "weight_R",
    "loss_R",
    "coefficient_R",
    "log_sum_R",
    "grad_query_RD",
    "grad_negative_SD",
    "grad_table_UD",
)


class _Call(ctypes.Structure):
    """SoftmaxCall of csrc/softmax_call.h."""

    _fields_ = (
        ("query_RD", ctypes.c_void_p),
        ("table_UD", ctypes.c_void_p),
        ("num_queries", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("num_negatives", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("inverse_temperature", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("type", ctypes.c_int32),
        ("normalize", ctypes.c_int32),
        ("mask_hits", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


class Problem:
    """The inputs of a loss, contiguous and kept alive, and calls of the C++ functions on them."""

    def __init__(
        self,
        query_RD: Tensor,
        table_UD: Tensor,
        target_R: Tensor,
        negatives: Tensor | None,
        valid_V: Tensor | None,
        log_q_target_R: Tensor | None,
        log_q_negatives: Tensor | None,
        temperature: float,
        normalize: bool,
        eps: float,
        mask_hits: bool,
    ) -> None:
        if query_RD.dtype not in _TYPES or query_RD.shape[1] > _MAX_WIDTH:
            raise KernelUnavailable(
                f"the softmax losses in C++ take float32 and bfloat16, D up to {_MAX_WIDTH}, got {query_RD.dtype}, "
                f"D = {query_RD.shape[1]}; convert, or ask for backend='reference'"
            )
        self.query_RD, self.table_UD = query_RD.detach().contiguous(), table_UD.detach().contiguous()
        self.num_queries, self.width = query_RD.shape
        self.num_negatives = len(table_UD) if negatives is None else negatives.shape[-1]
        self.per_row = negatives is not None and negatives.dim() == 2
        self.small = self.num_negatives <= SMALL
        self._inputs: dict[str, Tensor | None] = {
            "target_R": target_R.contiguous(),
            "negatives": None if negatives is None else negatives.contiguous(),
            "valid_V": None if valid_V is None else valid_V.contiguous(),
            "log_q_target_R": None if log_q_target_R is None else log_q_target_R.detach().float().contiguous(),
            "log_q_negatives": None if log_q_negatives is None else log_q_negatives.detach().float().contiguous(),
        }
        self._scalars = {
            "inverse_temperature": 1.0 / temperature,
            "eps": eps,
            "type": _TYPES[query_RD.dtype],
            "normalize": int(normalize),
            "mask_hits": int(mask_hits),
        }

    def run(self, name: str, **tensors: Tensor | None) -> None:
        """Call a C++ function on these inputs and ``tensors`` (float32, contiguous)."""
        pointers = {key: address(tensor) for key, tensor in {**self._inputs, **tensors}.items()}
        call = _Call(
            query_RD=address(self.query_RD),
            table_UD=address(self.table_UD),
            num_queries=self.num_queries,
            num_rows=len(self.table_UD),
            width=self.width,
            num_negatives=self.num_negatives,
            num_threads=num_threads(),
            **pointers,
            **self._scalars,
        )
        failure = function(f"softmax_{name}", self.query_RD.dtype)(ctypes.byref(call))
        if failure == _OUTSIDE and (negatives := self._inputs["negatives"]) is not None:
            check_range(negatives, len(self.table_UD), "negatives", lowest=-1)
        if failure:
            raise MemoryError(f"softmax_{name}: no memory for temporary buffers; use fewer queries or rows at a time")

    def new(self, *shape: int) -> Tensor:
        """A float32 tensor to be filled."""
        return torch.empty(shape, dtype=torch.float32)

    def mean_weights(self) -> Tensor:
        """(R,) weights of the losses in their mean."""
        return torch.full((self.num_queries,), 1.0 / max(1, self.num_queries))


def _forward(
    query_RD: Tensor,
    table_UD: Tensor,
    target_R: Tensor,
    negatives: Tensor | None,
    valid_V: Tensor | None,
    log_q_target_R: Tensor | None,
    log_q_negatives: Tensor | None,
    temperature: float,
    normalize: bool,
    eps: float,
    mask_hits: bool,
    with_query: bool,
    with_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(R,) losses, then what the backward pass needs: query gradient, coefficient, log sum, gradient of negatives or
    table. The gradients are those of the mean loss.

    ``negatives`` None: the whole table. ``with_query``, ``with_table``: which gradients will be needed.
    """
    problem = Problem(
        query_RD, table_UD, target_R, negatives, valid_V, log_q_target_R, log_q_negatives,
        temperature, normalize, eps, mask_hits,
    )  # fmt: skip
    mean_R = problem.mean_weights()
    new, num_queries, width = problem.new, problem.num_queries, problem.width
    loss_R, coefficient_R, log_sum_R = new(num_queries), new(num_queries), new(num_queries)
    grad_query_RD = new(num_queries, width) if with_query else None
    extra = None
    if problem.per_row:
        extra = new(len(table_UD), width) if with_table else None
        problem.run("per_row", loss_R=loss_R, grad_query_RD=grad_query_RD, grad_table_UD=extra, weight_R=mean_R)
        coefficient_R.zero_()
        log_sum_R.zero_()
    else:
        extra = new(problem.num_negatives, width) if with_table and problem.small else None
        problem.run(
            "shared_small" if problem.small else "shared_large",
            loss_R=loss_R,
            coefficient_R=coefficient_R,
            log_sum_R=log_sum_R,
            grad_query_RD=grad_query_RD,
            grad_negative_SD=extra,
            weight_R=mean_R,
        )
    return (
        loss_R,
        new(0) if grad_query_RD is None else grad_query_RD,
        coefficient_R,
        log_sum_R,
        new(0) if extra is None else extra,
    )


class _Loss(torch.autograd.Function):
    """Losses with gradients. Not an operator of `torch.library`, whose dispatcher takes long in a small step."""

    @staticmethod
    def forward(ctx: Any, query_RD: Tensor, table_UD: Tensor, *arguments: Any) -> Tensor:
        """The losses; saves what the gradients need, as the last arguments of `_forward` say."""
        loss_R, *kept = _forward(query_RD, table_UD, *arguments)
        ctx.save_for_backward(query_RD, table_UD, *arguments[:5], *kept)
        ctx.scalars = arguments[5:-2]
        result: Tensor = loss_R
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query and table, in their dtypes."""
        *inputs, grad_query_RD, coefficient_R, log_sum_R, extra = ctx.saved_tensors
        weight_R = grads[0].float().contiguous()
        problem = Problem(*inputs, *ctx.scalars)
        mean_R = problem.mean_weights()
        query, table = None, None
        if ctx.needs_input_grad[0]:
            asked_for_mean = torch.equal(weight_R, mean_R)
            query = grad_query_RD if asked_for_mean else grad_query_RD * (weight_R / mean_R)[:, None]
            query = query.to(inputs[0].dtype)
        if ctx.needs_input_grad[1]:
            table = _table_gradient(problem, weight_R, coefficient_R, log_sum_R, extra).to(inputs[1].dtype)
        return (query, table, *[None] * 11)


def _table_gradient(
    problem: Problem, weight_R: Tensor, coefficient_R: Tensor, log_sum_R: Tensor, extra: Tensor
) -> Tensor:
    """(U, D) float32, with the losses weighted by ``weight_R``."""
    alike = problem.num_queries > 0 and bool((weight_R == weight_R[0]).all())
    times_mean = weight_R[0] * problem.num_queries if alike else None
    if problem.per_row:
        if times_mean is not None:
            return extra * times_mean
        grad_table_UD = problem.new(*problem.table_UD.shape)
        problem.run("per_row", loss_R=problem.new(problem.num_queries), grad_table_UD=grad_table_UD, weight_R=weight_R)
        return grad_table_UD
    if problem.small and times_mean is not None:
        grad_negative_SD = extra * times_mean
    else:
        grad_negative_SD = problem.new(problem.num_negatives, problem.width)
        if problem.small:
            loss_R = problem.new(problem.num_queries)
            problem.run("shared_small", loss_R=loss_R, grad_negative_SD=grad_negative_SD, weight_R=weight_R)
        else:
            problem.run(
                "shared_large_gradient", log_sum_R=log_sum_R, grad_negative_SD=grad_negative_SD, weight_R=weight_R
            )
    grad_table_UD = torch.zeros(problem.table_UD.shape, dtype=torch.float32)
    problem.run(
        "scatter",
        coefficient_R=coefficient_R,
        weight_R=weight_R,
        grad_negative_SD=grad_negative_SD,
        grad_table_UD=grad_table_UD,
    )
    return grad_table_UD


def loss(
    query_RD: Tensor,
    table_UD: Tensor,
    target_R: Tensor,
    negatives: Tensor | None,
    *,
    temperature: float,
    normalize: bool,
    eps: float,
    mask_hits: bool = True,
    valid_V: Tensor | None = None,
    log_q_target_R: Tensor | None = None,
    log_q_negatives: Tensor | None = None,
) -> Tensor:
    """(R,) float32 losses, differentiable in query and table."""
    wanted = torch.is_grad_enabled()
    result: Tensor = _Loss.apply(
        query_RD, table_UD, target_R, negatives, valid_V, log_q_target_R, log_q_negatives,
        temperature, normalize, eps, mask_hits, wanted and query_RD.requires_grad, wanted and table_UD.requires_grad,
    )  # fmt: skip
    return result
