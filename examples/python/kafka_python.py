"""Send actions with kafka-python, whose default partitioner is murmur2."""

import json
import sys
import time
import uuid

from kafka import KafkaProducer

bootstrap = sys.argv[1] if len(sys.argv) > 1 else "localhost:29092"
topic = sys.argv[2] if len(sys.argv) > 2 else "headrace.actions.v1"
producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
sent = []


def send(*actions: dict) -> None:
    """One record: an action, or a list of one user's."""
    value = actions[0] if len(actions) == 1 else actions
    sent.append(producer.send(topic, key=str(actions[0]["user"]).encode(), value=json.dumps(value).encode()))


now_ms = int(time.time() * 1000)
send({"user": "u17", "item": "i42", "action": "click", "timestamp": now_ms})
send({"user": 5, "item": 42, "action": ["click", "like"], "timestamp": now_ms, "value": 4.5, "id": str(uuid.uuid4())})
send(
    {"user": "zoë", "item": "i42", "action": "impression", "timestamp": now_ms},
    {"user": "zoë", "item": "i43", "action": "impression", "timestamp": now_ms + 1},
)
producer.flush()
for each in sent:
    each.get()  # raises if the broker did not take it
