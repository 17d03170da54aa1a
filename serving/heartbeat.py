"""Reports to the status topic once a second which version this server answers from, and whose users.

The trainer uses it for the lag, other servers to forward requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError
from msgspec.structs import replace

from serving.open_files import OpenFiles
from serving.search.index import ItemSearch
from serving.users.shard import Shard
from serving.versions.manager import WeightsManager
from serving.versions.rollout import Rollout
from wire.config import KafkaConfig
from wire.holding import NONE
from wire.kafka.addresses import accepts_connections
from wire.kafka.producer import make_producer
from wire.kafka.refusal import refusal
from wire.status import ServerStatus, encode_status, key_of

logger = logging.getLogger(__name__)
BRIEFLY: dict[str, Any] = {
    "max_block_ms": 1000, "retries": 0, "acks": 1, "delivery_timeout_ms": 3000, "request_timeout_ms": 2000,
}  # fmt: skip


class Heartbeat(threading.Thread):
    """A thread with its own producer. A report that the broker does not accept is dropped: the next one replaces it."""

    def __init__(self, kafka: KafkaConfig, topic: str, name: str, manager: WeightsManager,
                 num_requests: Callable[[], int], every_s: float, rollout: Rollout | None = None,
                 shard: Shard | None = None, address: str = "", search: ItemSearch | None = None) -> None:  # fmt: skip
        super().__init__(name="status", daemon=True)
        self._kafka, self._topic, self._component, self._manager = kafka, topic, name, manager
        self._num_requests, self._every_s = num_requests, every_s
        self._rollout, self._shard, self._address = rollout or Rollout(), shard or Shard(), address
        self._search = search
        self._stopping = threading.Event()
        self._is_refused = False

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._stopping.set()

    def status(self) -> ServerStatus:
        """The report as of now."""
        current, files = self._manager.current, OpenFiles.count()
        report = ServerStatus(
            component=self._component, time_ms=int(time.time() * 1000), num_requests=self._num_requests(),
            open_files=files.num, most_files=files.most, partitions=NONE, num_partitions=self._shard.num_partitions,
            address=self._address, recall=self._search.recall if self._search else None,
            is_recall_low=self._search is not None and self._search.is_low,
        )  # fmt: skip
        if current is None:
            return report
        return replace(
            report, epoch=current.which[0], number=current.which[1], newest_record_ms=current.manifest.newest_record_ms,
            swapped_ms=current.swapped_ms, pinned=list(self._rollout.wanted or ()), held=list(self._rollout.held or ()),
            why=self._rollout.why, line=self._rollout.line, partitions=self._shard.told,
        )  # fmt: skip

    def run(self) -> None:
        """Report until stopped, whatever happens: a server that answers without reporting would count as dead."""
        while not self._stopping.is_set():
            producer = self._connect()
            try:
                while producer is not None and not self._stopping.wait(self._every_s):
                    self._report(producer)
            except Exception:
                logger.exception("status: the heartbeat failed; starting it again")
                self._stopping.wait(self._every_s)
            finally:
                if producer is not None:
                    producer.close(timeout=1)

    def _report(self, producer: KafkaProducer) -> None:
        try:
            status = self.status()
            sent = producer.send(self._topic, key=key_of(status), value=encode_status(status))
        except (KafkaError, AssertionError) as error:
            self._note(error)
        else:
            sent.add_errback(self._note)

    def _note(self, error: BaseException) -> None:
        """Log once what only an operator can fix; anything else may be over in a second."""
        logger.debug("status: not sent (%s)", error)
        refused = refusal(error, self._kafka.bootstrap, "writing")
        if refused is not None and not self._is_refused:
            self._is_refused = True
            logger.error("status: this server's reports are refused: %s", refused)

    def _connect(self) -> KafkaProducer | None:
        while not self._stopping.is_set():
            # Or else a producer would look for the broker for seconds, also when this thread is told to end.
            if accepts_connections(self._kafka):
                try:
                    return make_producer(self._kafka, **BRIEFLY)
                except (KafkaError, OSError) as error:
                    self._note(error)
            self._stopping.wait(self._every_s)
        return None
