"""The ``headrace`` command, and ``python -m headrace``."""

from __future__ import annotations

import sys

from headrace.interrupts import heed_interrupts


def main() -> None:
    """Run the command of this process's arguments."""
    heed_interrupts()  # before anything else is imported
    from headrace.command import run

    sys.exit(run("headrace"))


if __name__ == "__main__":
    main()
