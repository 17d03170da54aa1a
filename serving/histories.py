"""What users did: the newest example of each, kept as the bytes that came, bounded in memory.

The sequences topic is compacted by user, and a user's newest example holds the last ``max_context`` sealed interactions
and the open ones; so reading it from its start gives every user's present history, and following it keeps it present.
An entry costs the record's bytes (about 40 for each interaction, so 8 kB for 200) and about 200 bytes around them.
Beyond ``max_bytes`` the users that have been quiet longest are forgotten, and answered as cold until they act again.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from wire.errors import CodecError
from wire.example import CLOCK_START_MS, Example
from wire.example_codec import decode_example
from wire.example_log import ExampleLog, Verdict

ENTRY_BYTES = 200
"""What an entry costs beside its record and its user's name: dictionary slot and object headers."""
logger = logging.getLogger(__name__)


class Histories:
    """User → newest example. Fed by one thread, read by any."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._examples: OrderedDict[str, bytes] = OrderedDict()
        self._logs: dict[int, ExampleLog] = {}
        self._features: dict[int, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.num_forgotten = 0
        self.num_damaged = 0
        self.clock_ms = CLOCK_START_MS
        """Newest event time of any partition."""

    def __len__(self) -> int:
        return len(self._examples)

    def feed(self, partition: int, value: bytes | None) -> None:
        """One record of the sequences topic, in the order of offsets within its partition."""
        if value is None:
            return
        try:
            example = decode_example(value)
        except CodecError as error:
            self.num_damaged += 1
            logger.warning("partition %d: a record is skipped: %s", partition, error)
            return
        log = self._logs.setdefault(partition, ExampleLog(None, allow_holes=True))
        if log.feed(example) is Verdict.ACCEPT:
            self._keep(example, value)

    def _keep(self, example: Example, value: bytes) -> None:
        with self._lock:
            before = self._examples.pop(example.user, None)
            self._examples[example.user] = value
            self.num_bytes += _cost(example.user, value) - (_cost(example.user, before) if before is not None else 0)
            while self.num_bytes > self._max_bytes and len(self._examples) > 1:
                user, gone = self._examples.popitem(last=False)
                self.num_bytes -= _cost(user, gone)
                self.num_forgotten += 1
        self.clock_ms = max(self.clock_ms, example.clock_ms)
        self._note_features(example)

    def _note_features(self, example: Example) -> None:
        sealed = example.interactions
        if sealed.feature_hash.ndim == 2 and sealed.feature_hash.shape[1]:
            self._features.update(zip(sealed.item_hash.tolist(), map(tuple, sealed.feature_hash.tolist()), strict=True))

    def forget_partitions(self) -> None:
        """Start to read again from the beginning (the topic was replaced): what comes is judged anew."""
        self._logs.clear()

    def get(self, user: str) -> Example | None:
        """The newest example of a user (canonical key), or None."""
        with self._lock:
            value = self._examples.get(user)
        return decode_example(value) if value is not None else None

    def newest_users(self, num: int) -> list[str]:
        """Users whose examples came last, newest first."""
        with self._lock:
            return list(itertools.islice(reversed(self._examples), num))

    def features_of(self, item_hash_n: NDArray[np.int64], num_features: int) -> NDArray[np.int64]:
        """(n, F) the features that items came with last; 0 where none were seen."""
        nothing = (0,) * num_features
        rows = [self._features.get(key, nothing) if num_features else () for key in item_hash_n.tolist()]
        return np.array(rows, np.int64).reshape(len(item_hash_n), num_features)


def _cost(user: str, value: bytes) -> int:
    return len(user) + len(value) + ENTRY_BYTES
