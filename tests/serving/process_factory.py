"""Servers for `tests.process_factory`: ``serving.__main__``, unchanged or with a fault (`FAULTS`)."""

from __future__ import annotations

from collections.abc import Sequence

from tests.process_factory import serve_children


def fail_at_the_second_swap() -> None:
    """The thread that follows the weights fails unexpectedly."""
    import serving.weights_manager

    swap = serving.weights_manager.WeightsManager.swap

    def failing(self: serving.weights_manager.WeightsManager) -> None:
        if self.num_swaps:
            raise RuntimeError("unexpected")
        swap(self)

    serving.weights_manager.WeightsManager.swap = failing  # type: ignore[method-assign]


FAULTS = {"the second swap fails": fail_at_the_second_swap}


def run(arguments: Sequence[str], broken: Sequence[str], _point: str) -> int:
    """Run one server; returns the exit status."""
    import serving.__main__

    for name in broken:
        FAULTS[name]()
    return serving.__main__.main(arguments)


if __name__ == "__main__":
    import serving.__main__
    import serving.process

    serve_children(run)
