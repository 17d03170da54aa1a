"""What `bench.peers.faust_table` does, in Quix Streams: each action is appended to its user's list in a state.

The state is stored in RocksDB, with a compacted topic as its changelog; a list keeps the last 200 actions. Imports
nothing of ours, so that it can run in an environment of its own:

    PYTHON -m bench.peers.quix_state BOOTSTRAP TOPIC NUM_ACTIONS
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from typing import Any

import msgspec
from quixstreams import Application, State

MAX_CONTEXT = 200


def append(bootstrap: str, topic_name: str, folder: str, num_actions: int) -> float:
    """Take ``num_actions`` of the topic, singly or in lists; processor seconds from the first until the state is on
    disk and in its changelog."""
    app = Application(
        broker_address=bootstrap, consumer_group=f"{topic_name}-quix", auto_offset_reset="earliest", state_dir=folder,
        loglevel=logging.ERROR,
    )  # fmt: skip
    topic = app.topic(topic_name, key_deserializer="bytes", value_deserializer="bytes")
    taken, began_s = 0, 0.0

    def take(value: bytes, state: State) -> None:
        nonlocal taken, began_s
        began_s = began_s or time.process_time()
        content = msgspec.json.decode(value)
        for action in content if isinstance(content, list) else [content]:
            user = str(action["user"])
            held: list[Any] = state.get(user) or []
            state.set(user, [*held, action][-MAX_CONTEXT:])
            taken += 1
        if taken >= num_actions:
            app.stop()

    frame = app.dataframe(topic)
    frame = frame.update(take, stateful=True)
    app.run()
    return time.process_time() - began_s


if __name__ == "__main__":
    bootstrap, topic_name, num_actions = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        print(append(bootstrap, topic_name, name, int(num_actions)))
