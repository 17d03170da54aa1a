"""What `bench.peers.faust_table` does, in Bytewax: each action is appended to its user's list in a stateful step.

Bytewax keeps state in memory and writes what changed to SQLite every ten seconds (its default). A list keeps the last
200 actions. Imports nothing of ours, so that it can run in an environment of its own:

    PYTHON -m bench.peers.bytewax_state BOOTSTRAP TOPIC NUM_ACTIONS

NUM_ACTIONS is what the topic holds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import msgspec
from bytewax.connectors.kafka import operators as kafka
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, run_main

MAX_CONTEXT = 200


def append(bootstrap: str, topic_name: str, folder: Path) -> float:
    """Take all that the topic holds, actions or lists of them; processor seconds from the first record until the state
    is on disk."""
    began_s = 0.0

    def actions_of(message: Any) -> list[tuple[str, Any]]:
        nonlocal began_s
        began_s = began_s or time.process_time()
        content = msgspec.json.decode(message.value)
        return [(str(action["user"]), action) for action in (content if isinstance(content, list) else [content])]

    def take(held: list[Any] | None, action: Any) -> tuple[list[Any], int]:
        return [*(held or []), action][-MAX_CONTEXT:], 0

    flow = Dataflow("append")
    source = kafka.input("in", flow, brokers=[bootstrap], topics=[topic_name], tail=False, batch_size=1000)
    held = op.stateful_map("held", op.flat_map("actions", source.oks, actions_of), take)
    op.output("out", op.filter("nothing", held, lambda _: False), TestingSink([]))  # a flow has to end somewhere
    init_db_dir(folder, 1)
    run_main(flow, epoch_interval=timedelta(seconds=10), recovery_config=RecoveryConfig(str(folder)))
    return time.process_time() - began_s


if __name__ == "__main__":
    bootstrap, topic_name, _ = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        print(append(bootstrap, topic_name, Path(name)))
