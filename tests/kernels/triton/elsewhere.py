"""A GPU that is not there: tensors that say they are on one, computed on the CPU, so that everything that would make
the host wait for a GPU, or would mix its tensors with the host's, is seen.

Under `Elsewhere`, code takes the paths that it takes on a GPU; Triton's kernels run in the interpreter. ``moves`` lists
all copies between host and GPU, ``waits`` what waited for everything that the device was given before: copies that are
not from or to pinned memory, numbers read, results whose size depends on values. Waiting for an event
(`kernels.transfer.ToHost`) is not among them.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map
from triton.runtime import interpreter

from tests.kernels.triton.capture import Captures, Graph, Stream, on_stream

ROOT = Path(__file__).resolve().parents[3]
CUDA = torch.device("cuda", 0)
DEPENDS_ON_VALUES = {"nonzero", "masked_select", "_local_scalar_dense", "equal", "is_nonzero", "_unique2", "bincount"}


class There(torch.Tensor):
    """A tensor on the GPU; ``here`` are its values. PyTorch takes it for one on "meta", where it computes nothing."""

    here: torch.Tensor
    device = property(lambda _: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), here.stride(), here.storage_offset(), dtype=here.dtype, device="meta"
        )
        made.here = here
        return made

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, values: There) -> None:
        self.here = values.here

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: a tensor of Elsewhere was used outside of its block")


class Event:
    """A `torch.cuda.Event`."""

    def __init__(self, mode: Elsewhere, **_: Any) -> None:
        self._mode, self._num = mode, 0

    def record(self) -> None:
        """Note what the device has been given so far."""
        self._num = self._mode.num_given

    def synchronize(self) -> None:
        """Wait for it."""
        self._mode.arrive(self._num)


class Elsewhere(TorchDispatchMode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        # PyTorch starts CUDA for each new tensor on it, unless this kind of mode is on.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # type: ignore[assignment]
        self.waits: list[str] = []
        self.moves: list[str] = []
        self.captures = Captures()
        self._coming: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._leaving: list[tuple[torch.Tensor, torch.Tensor, str]] = []
        self._num_arrived = 0

    @property
    def num_given(self) -> int:
        """How many copies to pinned memory the device has been given."""
        return self._num_arrived + len(self._coming)

    def arrive(self, num: int | None = None) -> None:
        """The host has waited for the first ``num`` copies to pinned memory (None: for everything)."""
        with _disable_current_modes():
            while self._coming and (num is None or self._num_arrived < num):
                memory, values = self._coming.pop(0)
                memory.copy_(values)
                self._num_arrived += 1
            leaving, self._leaving = self._leaving, []
            for source, values, where in leaving:
                assert _same_bytes(source, values), f"pinned memory changed before it was copied at {where}"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        flat = tree_flatten((args, kwargs))[0]
        there = [each for each in flat if isinstance(each, There)]
        if name == "is_pinned":
            return hasattr(args[0], "is_pinned_here")
        if name in ("_pin_memory", "pin_memory"):
            return _pinned(args[0].clone())
        is_pinned = kwargs.pop("pin_memory", None)
        device = kwargs.pop("device", None)
        kwargs |= {"device": "cpu"} if device is not None else {}
        stays = torch.device(device).type != "cpu" if device is not None else bool(there)
        self._note_waits(name, args, kwargs, there, stays=stays)
        wrapped = {id(each.here): each for each in there}
        if name == "copy_" and there and not isinstance(args[0], There) and hasattr(args[0], "is_pinned_here"):
            return self._come(args[0], args[1].here)
        work = partial(func, *tree_map(_here, args), **tree_map(_here, kwargs))
        result = work()
        if self.captures.now is not None and stays:
            self.captures.now.note(work, result, [each.here for each in there])
        if name == "copy_":
            return args[0]
        if is_pinned:
            return _pinned(result)

        def wrap(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return wrapped[id(value)] if id(value) in wrapped else There(value)

        return tree_map(wrap, result) if stays else result

    def _come(self, memory: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Copy to pinned memory, which has something else until the host has waited."""
        with _disable_current_modes():
            self._coming.append((memory, values.clone()))
            return memory.fill_(float("nan") if memory.is_floating_point() else -1)

    def _note_waits(self, name: str, args: Any, kwargs: Any, there: list[There], *, stays: bool) -> None:
        host = [
            each for each in tree_flatten((args, kwargs))[0]
            if isinstance(each, torch.Tensor) and not isinstance(each, There) and each.dim() > 0
        ]  # fmt: skip
        if name in ("_to_copy", "copy_"):
            is_moved = bool(there) != stays if name == "_to_copy" else bool(there and host)
            at_once = bool(kwargs.get("non_blocking")) or (name == "copy_" and len(args) > 2 and bool(args[2]))
            if not is_moved:
                return
            self.moves.append(name)
            assert self.captures.now is None, f"{name} between host and GPU in a capture, at {_place()}"
            if not (at_once and all(hasattr(each, "is_pinned_here") for each in host)):
                self._note(f"{name} {'from' if there else 'to'} the GPU")
            elif not there or (isinstance(args[0], There) and name == "copy_"):
                with _disable_current_modes():
                    self._leaving += [(each, each.clone(), _place()) for each in host]
            return
        is_masked = name in ("index", "index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if there and (name in DEPENDS_ON_VALUES or is_masked):
            self._note(name)
        if there and host:
            assert name.startswith("index"), f"{name}: expected all tensors on the GPU, got some on the host"
            self._note(f"{name} by an index on the host")

    def _note(self, what: str) -> None:
        assert self.captures.now is None, f"{what} in a capture, at {_place()}"
        self.waits.append(f"{what} at {_place()}")
        self.arrive()


def _place() -> str:
    """The innermost line of ours that is running."""
    ours = [each for each in traceback.extract_stack() if Path(each.filename).is_relative_to(ROOT)]
    where = [f"{Path(each.filename).name}:{each.lineno}" for each in ours
             if Path(each.filename).relative_to(ROOT).parts[0] in ("model", "trainer")]  # fmt: skip
    return where[-1] if where else "?"


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Also where they are NaN."""
    return not a.numel() or torch.equal(*(each.reshape(-1).contiguous().view(torch.uint8) for each in (a, b)))


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    tensor.is_pinned_here = True  # type: ignore[attr-defined]
    return tensor


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Inside the block there is a GPU."""
    call, mode = interpreter.GridExecutor.__call__, Elsewhere()

    def launch(executor: Any, *args: Any, **kwargs: Any) -> Any:
        # What runs before a capture reads gradients that nobody has written yet.
        with _disable_current_modes(), np.errstate(invalid="ignore", over="ignore"):
            work = partial(call, executor, *all_here(args), **all_here(kwargs))
            work()
        if mode.captures.now is not None:
            mode.captures.now.note(work)

    there: dict[str, Any] = {
        "Event": partial(Event, mode), "Stream": Stream, "stream": on_stream, "current_stream": Stream,
        "CUDAGraph": partial(Graph, mode.captures), "graph": mode.captures.capture, "graph_pool_handle": lambda: (0, 1),
        "synchronize": mode.arrive, "current_device": lambda: 0,
    }  # fmt: skip
    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launch),
        mock.patch.multiple(torch.cuda, **there),
        mock.patch("kernels.triton_shared._num_processors", return_value=2),
        mock.patch("kernels.triton_shared._architecture", return_value=90),
        mode,
    ):
        yield mode
        mode.arrive()


def all_here(value: Any) -> Any:
    """A launch's arguments, with tensors in tuples and descriptors too."""
    if isinstance(value, There):
        return value.here
    assert not isinstance(value, torch.Tensor), f"a kernel got a tensor of the host, {tuple(value.shape)}"
    if isinstance(value, dict):
        return {key: all_here(each) for key, each in value.items()}
    if isinstance(value, tuple):
        parts = [all_here(each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if hasattr(value, "base") and isinstance(value.base, There):
        value.base = value.base.here
    return value
