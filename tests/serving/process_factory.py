"""Servers for `tests.process_factory`: ``serving.__main__``, unchanged or with a fault (`FAULTS`)."""

from __future__ import annotations

import errno
import faulthandler
import signal
from collections.abc import Sequence
from functools import partial

from tests.process_factory import serve_children


def fail_at_the_second_swap(error: Exception) -> None:
    """The thread that follows the weights fails with ``error``."""
    import serving.versions.manager

    swap = serving.versions.manager.WeightsManager.swap

    def failing(self: serving.versions.manager.WeightsManager) -> None:
        if self.num_swaps:
            raise error
        swap(self)

    serving.versions.manager.WeightsManager.swap = failing  # type: ignore[method-assign]


FAULTS = {
    "the second swap fails": partial(fail_at_the_second_swap, RuntimeError("unexpected")),
    "the disk is full at the second swap": partial(
        fail_at_the_second_swap, OSError(errno.ENOSPC, "no room for more tables", "/tables")
    ),
}


def run(arguments: Sequence[str], broken: Sequence[str], _point: str) -> int:
    """Run one server; returns the exit status. At SIGUSR1 it writes where its threads are into its log."""
    import serving.__main__

    faulthandler.register(signal.SIGUSR1)
    for name in broken:
        FAULTS[name]()
    return serving.__main__.main(arguments)


if __name__ == "__main__":
    import serving.__main__
    import serving.process

    serve_children(run)
