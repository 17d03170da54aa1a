# mypy: allow-untyped-calls
"""The encoder on a GPU as CUDA graphs: one launch forward and one backward, instead of some thirty a layer.

A graph replays fixed shapes on fixed memory, but batches are jagged. So a batch is padded at its end to one of a few
sizes: tokens beyond the last offset belong to no user, see only themselves and get no gradient; offsets beyond the last
user are users without tokens. The kernels read where users begin on the device, so one graph serves every batch of its
size. Outputs of real tokens are the same as without padding; sums over all tokens (the gradients of weights) are taken
over other tiles, and may differ in their last bits.

All graphs share one memory pool: only one step runs at a time, and none needs the memory of the step before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor, nn

from kernels import Tail
from kernels.transfer import to_device
from model.hstu import HSTU

Int64 = NDArray[np.int64]
ALONE = Lock()
"""Held while a graph is captured. Meanwhile CUDA refuses what other threads allocate or copy, and the capture fails: so
a thread beside the training thread holds this while it uses the GPU."""
LEAST_TOKENS = 256
LEAST_USERS = 16


def padded_size(n: int, least: int) -> int:
    """The smallest of least · 2^k and 1.5 · least · 2^k that is at least n: from ``least`` on, below 1.5 n."""
    size = least
    while size < n:
        if size * 3 // 2 >= n:
            return size * 3 // 2
        size *= 2
    return size


def times_in_order(key_time_T: Int64, starts_B1: Int64) -> bool:
    """Whether every user's key times never decrease: computed on the host, so the device need not be asked."""
    is_back_T = key_time_T[1:] < key_time_T[:-1]
    is_back_T[starts_B1[(starts_B1 > 0) & (starts_B1 < len(key_time_T))] - 1] = False  # from one user to the next
    return not is_back_T.any()


class PaddedTail:
    """A `kernels.Tail` as a mask (T,) of the tokens read, so that its shape fits a graph; returns all tokens."""

    def __init__(self, is_read_T: Tensor) -> None:
        self._is_read_T = is_read_T

    def of(self, y_TM: Tensor) -> Tensor:
        """All tokens."""
        return y_TM

    def alone_varies(self, y_TM: Tensor) -> Tensor:
        """All tokens; only those that are read take gradients."""
        return torch.where(self._is_read_T[:, None], y_TM, y_TM.detach())


def _joined(
    size: tuple[int, int], offsets_B1: Int64, query_time_T: Int64, key_time_T: Int64, is_read_T: NDArray[np.bool_]
) -> Int64:
    """Query times, key times, the mask of tokens read, and offsets, each padded with its last value to the padded
    number of tokens or users."""
    num_tokens, num_offsets = size[0], size[1] + 1
    joined = np.empty(3 * num_tokens + num_offsets, np.int64)
    parts = np.split(joined, [num_tokens, 2 * num_tokens, 3 * num_tokens])
    for part, values in zip(parts, (query_time_T, key_time_T, is_read_T, offsets_B1), strict=True):
        part[: len(values)] = values
        part[len(values) :] = values[-1]
    return joined


class _Layers(nn.Module):
    """The module that is captured: it owns the layers' weights and no others."""

    def __init__(self, model: HSTU, context_gradient: bool, backend: str) -> None:
        super().__init__()
        self.layers, self._context_gradient = model.layers, context_gradient
        self._encode = (model.encode,)  # in a tuple, or the whole model's weights would be this module's
        self._backend = backend

    def forward(self, x_TM: Tensor, batch: Tensor) -> Tensor:
        """``batch``: query times, key times, the mask of tokens read and offsets, concatenated."""
        size = len(x_TM)
        query_time_T, key_time_T, is_read_T = batch[: 3 * size].view(3, size)
        return self._encode[0](
            x_TM, batch[3 * size :], query_time_T, key_time_T, in_order=True, backend=self._backend,
            tail=cast("Tail", PaddedTail(is_read_T > 0)), context_gradient=self._context_gradient,
        )  # fmt: skip


class Input(NamedTuple):
    """An argument of a graph of both passes: ``values`` on the device or in pinned memory, of which the first
    ``num_rows`` count; where there are fewer, zeros follow. ``varies``: whether its gradient is wanted."""

    values: Tensor
    num_rows: int
    varies: bool = False

    def on(self, device: torch.device) -> Tensor:
        """A copy."""
        padded = self.values.new_empty((self.num_rows, *self.values.shape[1:]), device=device)
        self.put(padded)
        return padded.requires_grad_(self.varies)

    @torch.no_grad()
    def put(self, padded: Tensor) -> None:
        """Copy it to where a graph reads it."""
        num = len(self.values)
        if num >= self.num_rows:
            padded.copy_(self.values if num == self.num_rows else self.values[: self.num_rows], non_blocking=True)
        else:
            padded[:num].copy_(self.values, non_blocking=True)
            padded[num:].zero_()


class Captures:
    """Graphs of modules, one for each size, in one memory pool; or the modules themselves, if ``wanted`` is False.

    If a capture fails, that is reported once, and from then on everything runs without graphs.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.works, self._wanted = True, wanted
        self._known: dict[Any, Callable[..., Any]] = {}
        self._pool: Any = None

    def replay(self, size: Any, make: Callable[[], nn.Module], arguments: Sequence[Tensor]) -> Any:
        """The outputs of what ``make`` makes; the same ``size`` must mean the same module and shapes."""
        if size not in self._known:
            plain = make()
            self._known[size] = self._captured(plain, arguments) if self._wanted and self.works else plain
        return self._known[size](*arguments)

    def learn(
        self, size: Any, make: Callable[[], nn.Module], arguments: Sequence[Input], device: torch.device
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Both passes in one graph on ``device``. Returns the outputs of what ``make`` makes, of which the first is the
        loss, and the loss's gradients to the arguments that vary; writes those of its weights to their ``grad``, which
        must be zero.

        Both lie in the graph's memory, and are valid until the next replay.
        """
        if size not in self._known:
            plain, wanted = make(), self._wanted and self.works
            known = self._captured_learning(plain, arguments, device) if wanted else _Uncaptured(plain, device)
            self._known[size] = known
        return cast("tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]", self._known[size](*arguments))

    def _captured(self, plain: nn.Module, arguments: Sequence[Tensor]) -> Callable[..., Any]:
        try:
            with ALONE:
                graphed = torch.cuda.make_graphed_callables(
                    plain, _samples(arguments), pool=self._shared_pool(), allow_unused_input=True
                )
        except RuntimeError as failure:
            self._fail(failure)
            return plain
        return cast("Callable[..., Any]", graphed)

    def _captured_learning(
        self, plain: nn.Module, arguments: Sequence[Input], device: torch.device
    ) -> Callable[..., Any]:
        try:
            with ALONE:
                return _LearningGraph(plain, [each.on(device) for each in arguments], self._shared_pool())
        except RuntimeError as failure:
            self._fail(failure)
            return _Uncaptured(plain, device)

    def _shared_pool(self) -> Any:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def _fail(self, failure: RuntimeError) -> None:
        self.works = False
        self._known.clear()
        warnings.warn(f"trainer.cuda_graphs: going on without graphs: a capture failed: {failure}", stacklevel=3)


def _samples(arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies of the arguments, which a graph then reads."""
    return tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in arguments)


def _gradients(plain: nn.Module, *arguments: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """The outputs and the gradients of `Captures.learn`."""
    outputs = plain(*arguments)
    weights, inputs = list(plain.parameters()), [x for x in arguments if x.requires_grad]
    found: tuple[Tensor | None, ...] = torch.autograd.grad(outputs[0], [*inputs, *weights], allow_unused=True)
    for weight, gradient in zip(weights, found[len(inputs) :], strict=True):
        if gradient is not None:
            assert weight.grad is not None, "the optimiser gives every weight a gradient"
            weight.grad.copy_(gradient)
    return tuple(x.detach() for x in outputs), found[: len(inputs)]


class _Uncaptured:
    """`_gradients` without a graph."""

    def __init__(self, plain: nn.Module, device: torch.device) -> None:
        self._plain, self._device = plain, device

    def __call__(self, *arguments: Input) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        return _gradients(self._plain, *(each.on(self._device) for each in arguments))


class _LearningGraph:
    """`_gradients` as one graph. ``samples``: the memory that it reads the arguments from."""

    def __init__(self, plain: nn.Module, samples: Sequence[Tensor], pool: Any) -> None:
        self._samples, self._graph = samples, torch.cuda.CUDAGraph()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):  # compiles the kernels, and lets libraries allocate what they need
                _gradients(plain, *samples)
        torch.cuda.current_stream().wait_stream(beside)
        with torch.cuda.graph(self._graph, pool=pool):
            self._results = _gradients(plain, *samples)

    def __call__(self, *arguments: Input) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        for sample, argument in zip(self._samples, arguments, strict=True):
            argument.put(sample)
        self._graph.replay()
        return self._results


class PaddedEncoder:
    """`HSTU.encode` without dropout, for batches whose key times are in order."""

    def __init__(
        self, model: HSTU, captures: Captures, *, context_gradient: bool = True, backend: str = "auto"
    ) -> None:  # fmt: skip
        self._model, self._captures, self._backend = model, captures, backend
        self._context_gradient = context_gradient

    def __call__(
        self, x_TM: Tensor, offsets_B1: Int64, query_time_T: Int64, key_time_T: Int64, is_read_T: NDArray[np.bool_]
    ) -> Tensor:  # fmt: skip
        """(T, M) → (T, M). All but x are on the host, where padding costs no launch; they are copied together."""
        num_tokens, num_users = len(x_TM), len(offsets_B1) - 1
        if num_tokens == 0:
            return x_TM
        size = padded_size(num_tokens, LEAST_TOKENS), padded_size(num_users, LEAST_USERS)
        padded = F.pad(x_TM, (0, 0, 0, size[0] - num_tokens))
        batch = to_device(_joined(size, offsets_B1, query_time_T, key_time_T, is_read_T), x_TM.device)
        y_TM: Tensor = self._captures.replay(
            size, lambda: _Layers(self._model, self._context_gradient, self._backend), (padded, batch)
        )  # fmt: skip
        return y_TM[:num_tokens]
