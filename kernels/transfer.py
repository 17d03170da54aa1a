# mypy: allow-untyped-calls
"""Copies between the host and a GPU that nobody waits for: through pinned memory, in the order of the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device; on the CPU it may share the array's memory.

    A plain copy to a GPU waits until the GPU has done everything that it was given before.
    """
    host = torch.from_numpy(np.ascontiguousarray(array))
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def staged(num: int, dtype: torch.dtype, device: torch.device) -> tuple[NDArray[Any], Tensor]:
    """An array of ``num`` numbers to be filled, and the same memory as a tensor from which a copy to the device does
    not wait: pinned if it is a GPU. It is not used again before copies from it are done, even if the tensor is gone."""
    host = torch.empty(num, dtype=dtype, pin_memory=device.type == "cuda")
    return host.numpy(), host


class ToHost:
    """Tensors of one type on their way to the host in one copy, as they are once the GPU has done what it was given
    before."""

    def __init__(self, *values: Tensor) -> None:
        self._values, self._arrived = [each.detach() for each in values], None
        self._here: list[NDArray[Any]] | None = None
        if values[0].is_cuda:
            shapes = [each.shape for each in values]
            there = torch.cat([each.reshape(-1) for each in self._values]) if len(values) > 1 else self._values[0]
            here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            here.copy_(there, non_blocking=True)
            parts = here.split([each.numel() for each in shapes]) if len(values) > 1 else [here]
            self._values = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> list[NDArray[Any]]:
        """The values, once they have arrived. Work that the GPU was given later is not waited for."""
        if self._here is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            self._here = [each.numpy() for each in self._values]
        return self._here
