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
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


class ToHost:
    """A tensor's values on their way to the host, as they are once the GPU has done what it was given before."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._arrived = values.detach(), None
        if values.is_cuda:
            there = self._values
            self._values = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            self._values.copy_(there, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> NDArray[Any]:
        """The values, once they have arrived. Work that the GPU was given later is not waited for."""
        if self._arrived is not None:
            self._arrived.synchronize()
        array: NDArray[Any] = self._values.numpy()
        return array
