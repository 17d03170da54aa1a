"""A process to kill: applies a log to a store and relays it to files, as fast as it can.

    python -m tests.state.victim FOLDER SEED NUM_RECORDS MOST

Each file of the "topic" is complete or absent (a rename), as a broker's records are. From ``MOST`` files on it waits to
be killed, so that whoever kills it may be late.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

from state.store import PartitionStore
from tests.state.world import ACTION, stream_of
from wire.config import SequenceConfig
from wire.example import fence
from wire.example_codec import decode_example, encode_example
from wire.example_log import ExampleLog

SEQUENCE = SequenceConfig(join_window_s=0.2, max_context=5, segment_len=4)


class Topic:
    """Records in files with increasing names."""

    def __init__(self, folder: Path, most: int = sys.maxsize) -> None:
        self._folder, self._most = folder, most
        folder.mkdir(parents=True, exist_ok=True)
        self._next = len(self.values())

    def append(self, value: bytes) -> None:
        """Write one record so that it survives a kill, or wait for the kill."""
        while self._next >= self._most:
            signal.pause()
        (self._folder / "writing").write_bytes(value)
        (self._folder / "writing").rename(self._folder / f"{self._next:08d}")
        self._next += 1

    def values(self) -> list[bytes]:
        """All records in order."""
        return [path.read_bytes() for path in sorted(self._folder.iterdir()) if path.name != "writing"]


def main(folder: Path, seed: int, num_records: int, most: int) -> None:
    log, rng = stream_of(seed, num_records), random.Random()
    topic, dead = Topic(folder / "topic", most), Topic(folder / "dead")
    examples = ExampleLog(None, allow_gaps=True)
    for value in topic.values():
        examples.feed(decode_example(value))
    store = PartitionStore.open(folder / "db", 0, ACTION, SEQUENCE)
    topic.append(encode_example(fence(0, examples.writer_epoch + 1)))
    store.set_writer_epoch(examples.writer_epoch + 1)
    store.refresh(sorted(examples.overwritten), sorted(examples.buried))
    print("ready", flush=True)
    while store.applied_offset < log[-1][0]:
        first = next(i for i, record in enumerate(log) if record[0] > store.applied_offset)
        store.apply(log[max(0, first - 2) : first + rng.randrange(1, 9)])
        relay(store, topic, dead)
    relay(store, topic, dead)
    store.close()


def relay(store: PartitionStore, topic: Topic, dead: Topic) -> None:
    """Relay everything that waits."""
    while entries := store.outbox(limit=5):
        for entry in entries:
            (topic if entry.is_example else dead).append(
                entry.value if entry.is_example else repr(entry.headers).encode()
            )
        store.ack(entries[-1].index)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
