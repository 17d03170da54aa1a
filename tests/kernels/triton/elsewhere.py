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
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map
from triton.runtime import interpreter

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
    """A `torch.cuda.Event` of a device that has always done its work already."""

    def record(self) -> None:
        """Nothing."""

    def synchronize(self) -> None:
        """Nothing."""


class Elsewhere(TorchDispatchMode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        # PyTorch starts CUDA for each new tensor on it, unless this kind of mode is on.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # type: ignore[assignment]
        self.waits: list[str] = []
        self.moves: list[str] = []

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
        result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
        if name == "copy_":
            return args[0]
        if is_pinned:
            return _pinned(result)

        def wrap(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return wrapped[id(value)] if id(value) in wrapped else There(value)

        return tree_map(wrap, result) if stays else result

    def _note_waits(self, name: str, args: Any, kwargs: Any, there: list[There], *, stays: bool) -> None:
        host = [
            each for each in tree_flatten((args, kwargs))[0]
            if isinstance(each, torch.Tensor) and not isinstance(each, There) and each.dim() > 0
        ]  # fmt: skip
        if name in ("_to_copy", "copy_"):
            is_moved = bool(there) != stays if name == "_to_copy" else bool(there and host)
            at_once = bool(kwargs.get("non_blocking")) or (name == "copy_" and len(args) > 2 and bool(args[2]))
            self.moves += [name] if is_moved else []
            if is_moved and not (at_once and all(hasattr(each, "is_pinned_here") for each in host)):
                self._note(f"{name} {'from' if there else 'to'} the GPU")
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
        """With the line of ours that it is in."""
        ours = [each for each in traceback.extract_stack() if Path(each.filename).parent.parent == ROOT]
        where = [
            f"{Path(each.filename).name}:{each.lineno}" for each in ours if Path(each.filename).parent.name != "tests"
        ]
        self.waits.append(f"{what} at {where[-1] if where else '?'}")


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    tensor.is_pinned_here = True  # type: ignore[attr-defined]
    return tensor


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Inside the block there is a GPU."""
    call = interpreter.GridExecutor.__call__

    def launch(executor: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return call(executor, *_all_here(args), **_all_here(kwargs))

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launch),
        mock.patch.multiple(torch.cuda, Event=Event, current_device=lambda: 0),
        mock.patch("kernels.triton_shared._num_processors", return_value=2),
        mock.patch("kernels.triton_shared._architecture", return_value=90),
        Elsewhere() as mode,
    ):
        yield mode


def _all_here(value: Any) -> Any:
    """A launch's arguments, with tensors in tuples and descriptors too."""
    if isinstance(value, There):
        return value.here
    if isinstance(value, dict):
        return {key: _all_here(each) for key, each in value.items()}
    if isinstance(value, tuple):
        parts = [_all_here(each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if hasattr(value, "base") and isinstance(value.base, There):
        value.base = value.base.here
    return value
