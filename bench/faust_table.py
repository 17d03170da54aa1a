"""The obvious first implementation: a Faust agent that appends each action to its user's list in a ``faust.Table``.

The table is stored in RocksDB, with a compacted topic as its changelog; a list keeps the last 200 actions. It joins no
feedback, drops no duplicates and emits no examples. It runs in a process of its own:

    python -m bench.faust_table BOOTSTRAP PREFIX NUM_PARTITIONS NUM_ACTIONS
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faust
import msgspec

from wire.config import KafkaConfig
from wire.topics import Topics

MAX_CONTEXT = 200


async def append(kafka: KafkaConfig, folder: Path, num_actions: int) -> float:
    """Consume ``num_actions`` from the actions topic, singly or in lists; returns processor seconds since the first."""
    app = faust.App(
        f"{kafka.prefix}-table", broker=f"kafka://{kafka.bootstrap}", store="rocksdb://?driver=rocksdict",
        datadir=str(folder),
        web_enabled=False, autodiscover=False, topic_partitions=kafka.partitions, topic_disable_leader=True,
        consumer_auto_offset_reset="earliest", stream_buffer_maxsize=10_000, broker_max_poll_records=500,
    )  # fmt: skip
    table: Any = app.Table("users", default=list, partitions=kafka.partitions)
    name = Topics.under(kafka.prefix).actions
    topic = app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    done = asyncio.Event()
    taken, began_s, ended_s = 0, 0.0, 0.0

    async def take(values: Any) -> None:
        nonlocal taken, began_s, ended_s
        async for value in values:
            began_s = began_s or time.process_time()
            content = msgspec.json.decode(value)
            for action in content if isinstance(content, list) else [content]:
                user = action["user"]
                table[user] = [*table[user], action][-MAX_CONTEXT:]
                taken += 1
            if taken >= num_actions:
                ended_s = time.process_time()
                done.set()

    app.agent(topic, name="take")(take)
    starting = asyncio.ensure_future(app.start())
    waiting = asyncio.ensure_future(asyncio.wait_for(done.wait(), 120.0))
    try:
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_EXCEPTION)
        if starting.done():
            starting.result()
        await waiting
    finally:
        waiting.cancel()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await app.stop()
    return ended_s - began_s


def processor_seconds(kafka: KafkaConfig, num_actions: int) -> float:
    """Run `append` in another process."""
    command = [sys.executable, "-m", "bench.faust_table", kafka.bootstrap, kafka.prefix, str(kafka.partitions)]
    done = subprocess.run([*command, str(num_actions)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    bootstrap, prefix, num_partitions, num_actions = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        settings = KafkaConfig(bootstrap=bootstrap, prefix=prefix, partitions=int(num_partitions))
        print(asyncio.run(append(settings, Path(name), int(num_actions))))
