"""Other stream processors that do what `bench.peers.faust_table` does, each in a process of its own.

They need packages that are not in the lock (``pip install quixstreams bytewax kafka-python msgspec``): if they are in
an environment of their own, ``HEADRACE_PEERS_PYTHON`` names its interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from wire.config import KafkaConfig
from wire.topics import Topics

PEERS = {"Quix Streams": ("quixstreams", "bench.peers.quix_state"), "Bytewax": ("bytewax", "bench.peers.bytewax_state")}
"""Name → its package, and our module that runs it."""
REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 120.0


def interpreter(package: str) -> str | None:
    """The Python that has a peer's package; None: it is not installed."""
    return sys.executable if find_spec(package) else os.environ.get("HEADRACE_PEERS_PYTHON")


def processor_seconds(peer: str, kafka: KafkaConfig, num_actions: int) -> float | None:
    """What a peer takes for the ``num_actions`` of the actions topic; None where it is not installed."""
    package, module = PEERS[peer]
    if (python := interpreter(package)) is None:
        return None
    command = [python, "-m", module, kafka.bootstrap, Topics.under(kafka.prefix).actions, str(num_actions)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S, cwd=REPOSITORY)
    return float(done.stdout.split()[-1])
