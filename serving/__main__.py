"""``python -m serving``: the same as ``headrace serve``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headrace.command import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    return run("python -m serving", ["serve"], arguments)


if __name__ == "__main__":
    sys.exit(main())
