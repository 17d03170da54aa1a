"""The obvious first implementation: a Faust agent that appends each action to its user's list in a ``faust.Table``.

The table is stored in RocksDB, with a compacted topic as its changelog; a list keeps the last 200 actions. It joins no
feedback, drops no duplicates and emits no examples. ``--alone``: an agent that does nothing with its records, so that
all it takes is Faust's. Either runs in a process of its own:

    python -m bench.peers.faust_table BOOTSTRAP PREFIX NUM_PARTITIONS NUM_RECORDS [--alone]
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
ALONE = "--alone"


async def consume(kafka: KafkaConfig, folder: Path, num_records: int, keeps: bool) -> float:
    """Consume ``num_records`` of the actions topic, each an action or a list of them; ``keeps``: in a table. Returns
    processor seconds since the first."""
    app = faust.App(
        f"{kafka.prefix}-{'table' if keeps else 'alone'}", broker=f"kafka://{kafka.bootstrap}", store="rocksdb://?driver=rocksdict",
        datadir=str(folder),
        web_enabled=False, autodiscover=False, topic_partitions=kafka.partitions, topic_disable_leader=True,
        consumer_auto_offset_reset="earliest", stream_buffer_maxsize=10_000, broker_max_poll_records=500,
    )  # fmt: skip
    table: Any = app.Table("users", default=list, partitions=kafka.partitions) if keeps else None
    name = Topics.under(kafka.prefix).actions
    topic = app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    done = asyncio.Event()
    taken, began_s, ended_s = 0, 0.0, 0.0

    async def take(values: Any) -> None:
        nonlocal taken, began_s, ended_s
        async for value in values:
            began_s = began_s or time.process_time()
            if table is not None:
                _append(table, value)
            taken += 1
            if taken >= num_records:
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


def _append(table: Any, value: bytes) -> None:
    content = msgspec.json.decode(value)
    for action in content if isinstance(content, list) else [content]:
        user = action["user"]
        table[user] = [*table[user], action][-MAX_CONTEXT:]


def processor_seconds(kafka: KafkaConfig, num_records: int, keeps: bool = True) -> float:
    """Run `consume` in another process."""
    command = [sys.executable, "-m", "bench.peers.faust_table", kafka.bootstrap, kafka.prefix, str(kafka.partitions)]
    command += [str(num_records), *([] if keeps else [ALONE])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    bootstrap, prefix, num_partitions, num_records, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        settings = KafkaConfig(bootstrap=bootstrap, prefix=prefix, partitions=int(num_partitions))
        print(asyncio.run(consume(settings, Path(name), int(num_records), keeps=ALONE not in options)))
