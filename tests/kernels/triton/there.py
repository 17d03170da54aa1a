"""Tensors of `tests.kernels.triton.elsewhere`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from model import lookup
from tests.kernels.triton.queues import Stream
from tests.kernels.triton.room import Held

CUDA = torch.device("cuda", 0)
PLACES = {
    "embedding_dense_backward": 1,
    "index_add": 2,
    "index_add_": 2,
    "index_copy": 2,
    "index_copy_": 2,
    "scatter_add": 2,
    "scatter_add_": 2,
}
"""The argument that says where, of operations that CUDA does in any order where a place occurs twice."""


class There(torch.Tensor):
    """A tensor on the GPU; ``here`` are its values. PyTorch takes it for one on "meta", where it computes nothing."""

    here: torch.Tensor
    held: Held
    device = property(lambda _: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: torch.Tensor, held: Held) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), here.stride(), here.storage_offset(), dtype=here.dtype, device="meta"
        )
        made.here, made.held = here, held
        return made

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, values: There) -> None:
        self.here, self.held = values.here, values.held

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        self.held.used_by(stream)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: a tensor of Elsewhere was used outside of its block")


def as_now(value: Any) -> Any:
    """What is computed with: tensors of the host as they are now."""
    if isinstance(value, There):
        return value.here
    return value.clone() if isinstance(value, torch.Tensor) and not hasattr(value, "is_pinned_here") else value


def here(value: Any) -> Any:
    """What the GPU has."""
    return value.here if isinstance(value, There) else value


def on_host(flat: list[Any]) -> bool:
    """Whether there are tensors of the host among these, besides single numbers."""
    return any(isinstance(each, torch.Tensor) and not isinstance(each, There) and each.dim() > 0 for each in flat)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Also where they are NaN."""
    return not a.numel() or torch.equal(*(each.reshape(-1).contiguous().view(torch.uint8) for each in (a, b)))


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, said to be in pinned memory."""
    tensor.is_pinned_here = True  # type: ignore[attr-defined]
    return tensor


def in_any_order(name: str, args: Any, work: Callable[[], Any], where: str) -> Callable[[], Any]:
    """``work``, unless its result would depend on chance."""
    place = here(args[PLACES[name]]) if name in PLACES else None
    if place is None or (name == "embedding_dense_backward" and place.numel() <= lookup.FEW):
        return work

    def checked() -> Any:
        is_known = len(place.unique()) == place.numel()
        assert is_known, f"{name} at {where}: a GPU adds what has the same place in any order"
        return work()

    return checked


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
