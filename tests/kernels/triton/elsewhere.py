"""A GPU that is not there: tensors that say they are on one, computed on the CPU, so that everything that would make
the host wait for a GPU, or would mix its tensors with the host's, is seen.

Under `Elsewhere`, code takes the paths that it takes on a GPU; Triton's kernels run in the interpreter. What the GPU is
given is done late (`tests.kernels.triton.queues`), in memory that is used again early (`tests.kernels.triton.room`).
``moves`` lists all copies between host and GPU, ``waits`` what waited for everything that the stream was given before:
copies that are not from or to pinned memory, numbers read, results whose size depends on values. Waiting for an event
(`kernels.transfer.ToHost`) is not among them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from triton.runtime import interpreter

from tests.kernels.triton.capture import Captures, Graph
from tests.kernels.triton.queues import Event, Queues, Stream
from tests.kernels.triton.room import Held, Room
from tests.kernels.triton.there import There, all_here, as_now, here, in_any_order, on_host, pinned, same_bytes

ROOT = Path(__file__).resolve().parents[3]
DEPENDS_ON_VALUES = {"nonzero", "masked_select", "_local_scalar_dense", "equal", "is_nonzero", "_unique2", "bincount"}
MADE_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Elsewhere(TorchDispatchMode):
    """See the module. ``seed``: see `tests.kernels.triton.queues`."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        # PyTorch starts CUDA for each new tensor on it, unless this kind of mode is on.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # type: ignore[assignment]
        self.waits: list[str] = []
        self.moves: list[str] = []
        self.queues = Queues(seed)
        self.captures = Captures(self.queues)
        self.room = Room(self.queues)
        self._held: list[Held] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        flat = tree_flatten((args, kwargs))[0]
        there = [each for each in flat if isinstance(each, There)]
        if func.namespace == "c10d":
            return self._communicate(func, args, kwargs, there)
        if name == "is_pinned":
            return hasattr(args[0], "is_pinned_here")
        if name in ("_pin_memory", "pin_memory"):
            return pinned(args[0].clone())
        is_pinned = kwargs.pop("pin_memory", None)
        device = kwargs.pop("device", None)
        place = {"device": "cpu"} if device is not None else {}
        stays = torch.device(device).type != "cpu" if device is not None else bool(there)
        if name in ("_to_copy", "copy_") and (bool(there) != stays or (there and on_host(flat))):
            return self._move(func, args, kwargs, place)
        is_read = self._note_waits(name, args, flat, there)
        if not stays:
            result = func(*args, **kwargs, **place)
            return pinned(result) if is_pinned else result
        work = partial(func, *tree_map(as_now, args), **tree_map(as_now, kwargs), **place)
        if any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns):
            return tree_map(lambda value: There(value, there[0].held), work())
        if is_read:
            return self._compute_now(work, there)
        if name in MADE_EMPTY:
            work = partial(_empty, work)
        work = in_any_order(name, args, work, _place())
        return self._compute(func, args, kwargs, place, work)

    def _communicate(self, func: Any, args: Any, kwargs: Any, there: list[There]) -> Any:
        """Exchange something with other ranks, once the stream has it; what is sent and received is held for a while,
        as PyTorch holds it until somebody waits."""
        assert self.captures.now is None, f"{func} in a capture, at {_place()}"
        self.queues.current.synchronize()
        self._held = [*self._held[-99:], *(each.held for each in there)]
        return func(*tree_map(here, args), **tree_map(here, kwargs))

    def _move(self, func: Any, args: Any, kwargs: Any, place: dict[str, str]) -> Any:
        """Copy between host and GPU: at once, unless the host's memory is pinned and nobody waits."""
        is_into = func.overloadpacket.__name__ == "copy_"
        source, into = (args[1], args[0]) if is_into else (args[0], None)
        assert self.captures.now is None, f"a copy between host and GPU in a capture, at {_place()}"
        self.moves.append("copy_" if is_into else "_to_copy")
        at_once = not (kwargs.get("non_blocking") or (is_into and len(args) > 2 and args[2]))
        if isinstance(source, There):
            if into is None:  # without waiting, PyTorch copies to pinned memory
                into = torch.empty(source.shape, dtype=kwargs.get("dtype") or source.dtype)
                into = into if at_once else pinned(into)
            return self._bring(into, source.here, at_once=at_once or not hasattr(into, "is_pinned_here"))
        before, where = source.clone(), _place()
        if at_once or not hasattr(source, "is_pinned_here"):
            self._note(f"{self.moves[-1]} to the GPU")
            source = before

        def check() -> None:
            assert same_bytes(source, before), f"pinned memory changed before it was copied at {where}"

        self.queues.give(check)
        args = (into, source, *args[2:]) if is_into else (source,)
        work = partial(func, *tree_map(as_now, args), **kwargs, **place)
        return self._compute(func, args, kwargs, place, work)

    def _bring(self, into: torch.Tensor, values: torch.Tensor, *, at_once: bool) -> torch.Tensor:
        """Copy to the host; pinned memory has something else until it is done."""
        if at_once:
            self._note(f"{self.moves[-1]} from the GPU")
            return into.copy_(values)
        into.fill_(float("nan") if into.is_floating_point() else -1)
        self.give(lambda: into.copy_(values))
        return into

    def _compute(self, func: Any, args: Any, kwargs: Any, place: dict[str, str], work: Callable[[], Any]) -> Any:
        """Have the device do ``work``; the shapes of its results follow from shapes alone."""
        given: dict[int, Any] = {}

        def shape_of(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            shape = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            given[id(shape)] = shape, value
            return shape

        place = place and {"device": "meta"}
        shapes, structure = tree_flatten(func(*tree_map(shape_of, args), **tree_map(shape_of, kwargs), **place))
        results, made = list[Any](), list[torch.Tensor | None]()
        for shape in shapes:
            is_new = isinstance(shape, torch.Tensor) and id(shape) not in given
            result = given[id(shape)][1] if id(shape) in given else self._new(shape) if is_new else shape
            results.append(result)
            made.append(result.here if is_new else None)
        self.give(partial(_fill, work, made), [each for each in made if each is not None])
        return structure.unflatten(results)

    def _compute_now(self, work: Callable[[], Any], there: list[There]) -> Any:
        """What the host has waited for."""
        known = {id(each.here): each for each in there}

        def wrapped(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) in known:
                return known[id(value)]
            result = self._new(value)
            result.here.copy_(value)
            return result

        return tree_map(wrapped, work())

    def _new(self, like: torch.Tensor) -> There:
        return There(*self.room.take(like, self.captures.now and self.captures.now.pool))

    def give(self, work: Callable[[], Any], made: Sequence[torch.Tensor] = ()) -> None:
        """Have the device do something, or capture it; ``made``: memory of its results."""
        if self.captures.now is not None:
            self.captures.now.note(work, made)
        else:
            self.queues.give(work)

    def _note_waits(self, name: str, args: Any, flat: list[Any], there: list[There]) -> bool:
        """Wait where the host does; whether the result's size or value depends on values."""
        is_masked = name in ("index", "index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if is_read := bool(there) and (name in DEPENDS_ON_VALUES or is_masked):
            self._note(name)
        if there and on_host(flat):
            assert name.startswith("index"), f"{name}: expected all tensors on the GPU, got some on the host"
            self._note(f"{name} by an index on the host")
        return is_read

    def _note(self, what: str) -> None:
        assert self.captures.now is None, f"{what} in a capture, at {_place()}"
        self.waits.append(f"{what} at {_place()}")
        self.queues.current.synchronize()


def _fill(work: Callable[[], Any], made: list[torch.Tensor | None]) -> None:
    """Do the work, and put its results where they belong."""
    for memory, result in zip(made, tree_leaves(work()), strict=True):
        if memory is not None:
            memory.copy_(result)


def _empty(work: Callable[[], torch.Tensor]) -> torch.Tensor:
    result = work()
    return result.fill_(float("nan")) if result.is_floating_point() else result


def _place() -> str:
    """The innermost line of ours that is running."""
    ours = [each for each in traceback.extract_stack() if Path(each.filename).is_relative_to(ROOT)]
    where = [f"{Path(each.filename).name}:{each.lineno}" for each in ours
             if Path(each.filename).relative_to(ROOT).parts[0] in ("model", "trainer")]  # fmt: skip
    return where[-1] if where else "?"


@contextmanager
def elsewhere(seed: int | None = None) -> Iterator[Elsewhere]:
    """Inside the block there is a GPU. ``seed``: see `tests.kernels.triton.queues`."""
    call, mode = interpreter.GridExecutor.__call__, Elsewhere(seed)
    queues = mode.queues

    def launch(executor: Any, *args: Any, **kwargs: Any) -> Any:
        mode.give(partial(call, executor, *all_here(args), **all_here(kwargs)))

    there: dict[str, Any] = {
        "Event": partial(Event, queues), "Stream": partial(Stream, queues), "stream": queues.on,
        "current_stream": lambda _=None: queues.current, "synchronize": queues.synchronize, "current_device": lambda: 0,
        "get_device_capability": lambda _=None: (9, 0),
        "CUDAGraph": partial(Graph, mode.captures), "graph": mode.captures.capture, "graph_pool_handle": lambda: (0, 1),
    }  # fmt: skip
    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launch),
        mock.patch.multiple(torch.cuda, **there),
        mock.patch("kernels.triton_shared._num_processors", return_value=2),
        mock.patch("kernels.triton_shared._architecture", return_value=90),
        mode,
    ):
        yield mode
        queues.synchronize()
