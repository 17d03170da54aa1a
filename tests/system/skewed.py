"""A process whose clock is wrong: ``python -m tests.system.skewed FILE worker --config F``.

FILE holds by how many seconds it is ahead; it is read again whenever it changes, so a clock can step while it runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_read: dict[str, Any] = {"changed_ns": 0, "ahead_s": 0.0}
_time, _time_ns = time.time, time.time_ns


def ahead_s(path: Path) -> float:
    """The current content of the file."""
    changed_ns = path.stat().st_mtime_ns
    if changed_ns != _read["changed_ns"]:
        _read.update(changed_ns=changed_ns, ahead_s=float(path.read_text() or 0.0))
    return float(_read["ahead_s"])


def skew(path: Path) -> None:
    """From now on, Python's time of day is wrong; clocks that measure durations are not."""
    clocks: dict[str, Callable[[], Any]] = {
        "time": lambda: _time() + ahead_s(path),
        "time_ns": lambda: _time_ns() + round(ahead_s(path) * 1e9),
    }
    for name, clock in clocks.items():
        setattr(time, name, clock)


if __name__ == "__main__":
    skew(Path(sys.argv[1]))
    from headrace.command import run

    sys.exit(run("headrace", arguments=sys.argv[2:]))
