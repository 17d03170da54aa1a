"""When `bench.live` asks a server, and what it says of its own cost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bench.live import Held, _saturation
from bench.live_probe import Probe, to_ask
from bench.live_stack import Stack
from tests.brokers import Broker
from wire.config import KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.producer import make_producer
from wire.status import PartitionStatus, WorkerStatus, encode_status
from wire.topics import Topics


def test_a_server_is_asked_only_while_its_answer_would_tell_something() -> None:
    first = Probe("a", 0.0, in_history_s=0.1, covered_by=(1, 1), learned_s=0.2)
    second = Probe("b", 0.3, in_history_s=0.4)
    assert to_ask([]) is None
    assert to_ask([first, second]) is None, "nothing is waited for but a version that the topic does not have"
    second.covered_by = (1, 2)
    assert to_ask([first, second]) is second, "a version that covers it may answer now"
    third, fourth = Probe("c", 0.5), Probe("d", 0.6)
    assert to_ask([first, second, third, fourth]) is third, "it has waited longest for its history"


def test_what_measures_is_named_and_is_not_the_busiest() -> None:
    cores = {"server": 1.0, "trainer": 4.0, "traffic": 6.0, "observer": 5.0}
    note = _saturation(1000.0, Held(1500.0, 10.0, [], [], cores, {}, 15_000, 0.0, 0))["note"]
    assert "busiest: trainer, 0.40 cores; all of them 1.60, of which traffic 0.60 and observer 0.50 measure" in note


def test_the_actions_of_a_long_run_are_counted_to_its_end(kafka: Broker, topic_prefix: str) -> None:
    """An hour of reports does not fit into what a consumer returns at a time."""
    config, topics = KafkaConfig(kafka.bootstrap, prefix=topic_prefix), Topics.under(topic_prefix)
    ensure_topics(config)
    producer = make_producer(config, linger_ms=20)
    for num in range(1, 12_001):
        status = WorkerStatus(component="w", time_ms=num, partitions={0: PartitionStatus(num_accepted=num)})
        producer.send(topics.status, key=b"w", value=encode_status(status))
    producer.close()
    stack: Any = SimpleNamespace(settings=SimpleNamespace(kafka=config), topics=topics)
    assert Stack.num_actions(stack) == 12_000
