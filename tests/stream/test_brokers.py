"""The broker fixture itself: it keeps its records over a kill, on the same port."""

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from tests.brokers import Broker


def test_records_survive_a_kill_of_the_broker(durable_kafka: Broker, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.x"
    admin = KafkaAdminClient(bootstrap_servers=durable_kafka.bootstrap)
    admin.create_topics([NewTopic(name=topic, num_partitions=1, replication_factor=1)])
    admin.close()
    with KafkaProducer(bootstrap_servers=durable_kafka.bootstrap, acks="all") as producer:
        for number in range(100):
            producer.send(topic, str(number).encode())
        producer.flush()
    durable_kafka.kill()
    durable_kafka.restart()
    with KafkaConsumer(bootstrap_servers=durable_kafka.bootstrap) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        seen: list[bytes] = []
        while len(seen) < 100:
            seen += [record.value for records in consumer.poll(1000).values() for record in records]
    assert seen == [str(number).encode() for number in range(100)]
