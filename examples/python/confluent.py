"""Send actions with confluent-kafka: librdkafka's default partitioner is not Kafka's own, so murmur2 is asked for."""

import json
import sys
import time
import uuid

from confluent_kafka import Producer

bootstrap = sys.argv[1] if len(sys.argv) > 1 else "localhost:29092"
topic = sys.argv[2] if len(sys.argv) > 2 else "headrace.actions.v1"
producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2", "enable.idempotence": True})
failures = []


def send(*actions: dict) -> None:
    """One record: an action, or a list of one user's."""
    value = actions[0] if len(actions) == 1 else actions
    key = str(actions[0]["user"]).encode()
    producer.produce(topic, key=key, value=json.dumps(value).encode(), on_delivery=delivered)


def delivered(error: object, _message: object) -> None:
    """Called by `flush` for each record."""
    if error is not None:
        failures.append(error)


now_ms = int(time.time() * 1000)
send({"user": "u17", "item": "i42", "action": "click", "timestamp": now_ms})
send({"user": 5, "item": 42, "action": ["click", "like"], "timestamp": now_ms, "value": 4.5, "id": str(uuid.uuid4())})
send(
    {"user": "zoë", "item": "i42", "action": "impression", "timestamp": now_ms},
    {"user": "zoë", "item": "i43", "action": "impression", "timestamp": now_ms + 1},
)
if producer.flush(30) or failures:
    sys.exit(f"not every action was sent: {failures}")
