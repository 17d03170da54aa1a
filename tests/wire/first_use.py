"""Decode each kind for the first time in four threads at once, in sixty forks: ``python -m tests.wire.first_use``.

Prints the kinds that crashed a fork. Decoded by its type alone, a status crashed one fork in seven.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from state.meta import Meta, Shape, decode_meta, encode_meta
from wire.config import ActionConfig, SequenceConfig
from wire.control import Pin, Switch, decode_pin, decode_switch, encode_decision
from wire.shape import decode_shape, encode_shape, shape_of
from wire.status import PartitionStatus, WorkerStatus, decode_status, encode_status
from wire.weights import decode_claim

NUM_FORKS, NUM_THREADS = 60, 4
ACTION, SEQUENCE = ActionConfig(), SequenceConfig()
STATUS = WorkerStatus(component="w", time_ms=1, partitions={0: PartitionStatus()}, disk="d")
CASES: dict[str, Callable[[], Any]] = {
    "a store's metadata": partial(decode_meta, encode_meta(Meta(Shape.of(0, 1, ACTION, SEQUENCE))), Path()),
    "a status": partial(decode_status, encode_status(STATUS)),
    "a shape": partial(decode_shape, encode_shape(shape_of(ACTION, SEQUENCE))),
    "a claim": partial(decode_claim, b'{"epoch": 1, "claimant": "c"}'),
    "a pin": partial(decode_pin, encode_decision(Pin(epoch=1, number=1, made_ms=1))),
    "a line": partial(decode_switch, encode_decision(Switch(line="b", made_ms=1))),
}


def together(decode: Callable[[], Any]) -> None:
    """Call it in all threads at the same moment."""
    barrier = threading.Barrier(NUM_THREADS)

    def begin() -> None:
        barrier.wait()
        decode()

    threads = [threading.Thread(target=begin) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def crashes(decode: Callable[[], Any]) -> bool:
    """Whether a fork of this process, which has decoded nothing yet, crashes."""
    pid = os.fork()
    if pid == 0:
        together(decode)
        os._exit(0)
    return os.waitpid(pid, 0)[1] != 0


if __name__ == "__main__":
    sys.setswitchinterval(1e-6)
    for name, decode in CASES.items():
        if any(crashes(decode) for _ in range(NUM_FORKS)):
            print(name)
