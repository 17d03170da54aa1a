"""``python -m stream worker|produce|simulate``: the same as ``headrace worker`` and so on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headrace.command import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    return run("python -m stream", ["worker", "produce", "simulate"], arguments)


if __name__ == "__main__":
    sys.exit(main())
