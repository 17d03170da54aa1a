"""A server that answers keeps reporting, whatever happens to the thread that reports."""

from __future__ import annotations

import itertools

from serving.heartbeat import Heartbeat
from serving.search.index import ItemSearch
from serving.versions.manager import WeightsManager
from tests.brokers import Broker
from wire.config import KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect, follow
from wire.status import ServerStatus, decode_status
from wire.topics import Topics


def test_a_heartbeat_that_fails_once_goes_on(kafka: Broker, topic_prefix: str) -> None:
    config, topic = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix), Topics.under(topic_prefix).status
    ensure_topics(config)
    told = itertools.count(1)

    def count() -> int:
        """The number of requests; fails the third time."""
        if (num := next(told)) == 3:
            raise ValueError("unexpected")
        return num

    heartbeat = Heartbeat(config, topic, "here", WeightsManager(), count, 0.05)
    consumer = connect(config, 20)
    heartbeat.start()
    try:
        for record in follow(consumer, topic):
            status = decode_status(record.value) if record is not None else None
            if isinstance(status, ServerStatus) and status.num_requests > 3:
                break
    finally:
        heartbeat.stop()
        heartbeat.join(60)
        consumer.close()
    assert not heartbeat.is_alive()


def test_a_heartbeat_tells_a_recall_that_is_too_low() -> None:
    search = ItemSearch(8, least_items=1, least_recall=0.9, compare_s=0.0)
    heartbeat = Heartbeat(KafkaConfig(), "status", "here", WeightsManager(), lambda: 0, 1.0, search=search)
    for _ in range(49):
        search.compared(5, 10)
    assert (heartbeat.status().recall, heartbeat.status().is_recall_low) == (0.5, False), "too few to say"
    search.compared(5, 10)
    assert (heartbeat.status().recall, heartbeat.status().is_recall_low) == (0.5, True)
    assert not Heartbeat(KafkaConfig(), "status", "here", WeightsManager(), lambda: 0, 1.0).status().is_recall_low
