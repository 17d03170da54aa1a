"""The batching producer, files and topics, on a broker."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from stream.errors import FileError, ProducerError
from stream.producer import ActionProducer, BatchConfig
from stream.sender import produce, send_actions
from tests.brokers import free_port, wait_until
from tests.stream.workers import Deployment
from wire.action import Action, decode_record
from wire.config import ActionConfig, KafkaConfig, SequenceConfig
from wire.errors import BrokerUnavailable, TopicsMismatch
from wire.kafka.admin import config_drift, ensure_topics
from wire.kafka.retry import wait_for_broker
from wire.partitioner import partition_of
from wire.topics import topics_of

NOW = 1_800_000_000_000


def _action(user: object, number: int) -> dict[str, object]:
    return {"user": user, "item": number, "action": "click", "timestamp": 1_700_000_000_000 + number}


def _actions(value: bytes) -> list[dict[str, object]]:
    content = msgspec.json.decode(value)
    return content if isinstance(content, list) else [content]


def test_actions_arrive_once_in_order_in_the_partition_of_their_user(deployment: Deployment) -> None:
    sent = [_action(number % 7, number) for number in range(1_000)]
    with ActionProducer(deployment.kafka, deployment.topics.actions, BatchConfig(max_actions=30)) as producer:
        for action in sent:
            producer.send(action)
    seen: list[dict[str, object]] = []
    for number, records in deployment.read(deployment.topics.actions).items():
        for record in records:
            actions = _actions(record.value)
            assert partition_of(record.key, 2) == number
            assert {partition_of(str(action["user"]).encode(), 2) for action in actions} == {number}
            seen += actions
    for user in range(7):
        assert [a for a in seen if a["user"] == user] == [a for a in sent if a["user"] == user]
    assert producer.num_actions == 1_000
    assert producer.num_records < 60


def test_records_stay_under_their_size_and_number(deployment: Deployment) -> None:
    batch = BatchConfig(max_actions=50, max_bytes=1_000)
    with ActionProducer(deployment.kafka, deployment.topics.actions, batch) as producer:
        for number in range(300):
            producer.send(_action("u", number))
    [records] = [found for found in deployment.read(deployment.topics.actions).values() if found]
    assert max(len(record.value) for record in records) <= 1_000
    assert sum(len(_actions(record.value)) for record in records) == 300


def test_a_file_is_sent_in_records_that_the_worker_accepts(deployment: Deployment, tmp_path: Path) -> None:
    for name, changed in (("many", {"max_actions_per_record": 7}), ("large", {"max_record_bytes": 400})):
        deployment.action = replace(deployment.action, **changed)
        actions = [{**_action(f"u{number}", number), "item": name} for number in range(50)]
        (tmp_path / name).write_text("".join(json.dumps(action) + "\n" for action in actions))
        assert produce(deployment, tmp_path / name) == 0
        records = [record for part in deployment.read(deployment.topics.actions).values() for record in part]
        values = [record.value for record in records if name.encode() in record.value]
        outcomes = [each for value in values for each in decode_record(value, NOW, deployment.action)]
        assert [type(outcome) for outcome in outcomes] == [Action] * 50


def test_an_action_waits_no_longer_than_the_linger(deployment: Deployment) -> None:
    with ActionProducer(deployment.kafka, deployment.topics.actions, BatchConfig(linger_s=0.05)) as producer:
        producer.send(_action("u", 1))
        topic = deployment.topics.actions
        wait_until(lambda: any(deployment.read(topic).values()), 60, "the action without a flush")


def test_a_record_that_the_broker_refuses_is_an_error(deployment: Deployment) -> None:
    with ActionProducer(deployment.kafka, deployment.topics.actions) as producer:
        incompressible = random.Random(1).randbytes(1_100_000).hex()
        producer.send({**_action("u", 1), "session": incompressible})
        with pytest.raises(ProducerError, match="1 records were not written"):
            producer.flush()


def test_sending_ends_with_the_first_record_that_fails(deployment: Deployment) -> None:
    incompressible = random.Random(1).randbytes(1_100_000).hex()
    too_large = {**_action("u", 0), "session": incompressible}
    taken = itertools.count()
    actions = (too_large if at == 0 else _action(at, at) for at in taken)
    with pytest.raises(ProducerError, match=r"at least \d+ records were not written to .*; first: MessageSize"):
        send_actions(actions, deployment.kafka, rate=100, limit=1_000)
    assert next(taken) < 1_000


def test_the_report_says_what_was_sent(deployment: Deployment) -> None:
    actions = [_action(number % 5, number) for number in range(100)]
    report = send_actions(actions, deployment.kafka)
    assert (report.num_actions, report.is_whole) == (100, True)
    found = [record for records in deployment.read(deployment.topics.actions).values() for record in records]
    assert sum(len(_actions(record.value)) for record in found) == 100


def test_sending_that_is_interrupted_says_what_was_sent(deployment: Deployment) -> None:
    def interrupted() -> Iterator[dict[str, object]]:
        yield from (_action(number, number) for number in range(30))
        raise KeyboardInterrupt

    report = send_actions(interrupted(), deployment.kafka)
    assert not report.is_whole
    assert report.num_actions == 30
    found = [record for records in deployment.read(deployment.topics.actions).values() for record in records]
    assert sum(len(_actions(record.value)) for record in found) == 30


def test_ratings_are_not_sent_to_a_worker_that_would_refuse_them(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n")
    settings = SimpleNamespace(kafka=KafkaConfig("127.0.0.1:1"), action=ActionConfig(), sequence=SequenceConfig())
    with pytest.raises(FileError, match=r"got rate, love.*HEADRACE_ACTION__KINDS=rate,like,love.*JOIN_WINDOW_S=0"):
        produce(settings, tmp_path / "ratings.dat")  # type: ignore[arg-type]


def test_nothing_is_sent_of_a_file_with_one_wrong_line(deployment: Deployment, tmp_path: Path) -> None:
    lines = [msgspec.json.encode(_action("u", number)).decode() for number in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, lines[0].replace('"u"', "null")]) + "\n")
    with pytest.raises(FileError, match=r"a\.jsonl:101: user: expected a string or an integer, got null"):
        produce(settings_of(deployment), tmp_path / "a.jsonl")
    assert set(deployment.ends(deployment.topics.actions).values()) == {0}


def test_producing_a_file_says_how_many_records_were_sent(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [msgspec.json.encode(_action("u", number)).decode() for number in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert produce(settings_of(deployment), tmp_path / "a.jsonl") == 0
    assert f"sent 3 actions in 1 records to {deployment.topics.actions}" in capsys.readouterr().out


def settings_of(deployment: Deployment) -> Any:
    return SimpleNamespace(
        kafka=deployment.kafka, action=deployment.action, sequence=deployment.sequence, stream=deployment.stream
    )


@pytest.mark.parametrize("user", [None, ["u"], True, 5.5, "\ud800"])
def test_an_action_without_a_usable_user_is_an_error_of_ours(user: object, deployment: Deployment) -> None:
    with ActionProducer(deployment.kafka, deployment.topics.actions) as producer:
        with pytest.raises(ProducerError, match=r"user: .*expected .*, got"):
            producer.send(_action(user, 1))
        producer.send(_action(5.0, 1))
    assert producer.num_actions == 1


def test_sending_keeps_its_rate(deployment: Deployment) -> None:
    actions = (_action(number % 5, number) for number in range(10_000))
    report = send_actions(actions, deployment.kafka, rate=400.0, limit=200)
    assert report.num_actions == 200
    assert 0.35 < report.elapsed_s < 60, "half a second, unless the machine is busy"


def test_topics_are_created_once_and_a_wrong_number_of_partitions_is_refused(deployment: Deployment) -> None:
    config = replace(deployment.kafka, prefix=deployment.prefix + "x")
    assert len(ensure_topics(config)) == len(topics_of(config))
    assert ensure_topics(config) == []
    with pytest.raises(TopicsMismatch, match="expected 3 partitions, the broker has 2; set kafka"):
        ensure_topics(replace(config, partitions=3))


def test_topics_have_their_settings(deployment: Deployment) -> None:
    if deployment.broker.kind != "apache":
        pytest.skip("the embedded broker does not tell a topic's settings")
    from kafka import KafkaAdminClient
    from kafka.admin import ConfigResource, ConfigResourceType

    admin = KafkaAdminClient(bootstrap_servers=deployment.broker.bootstrap)
    try:
        found = str(admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, deployment.topics.sequences)]))
    finally:
        admin.close()
    assert "compact" in found
    assert "86400000" in found


def test_a_topic_with_other_settings_than_configured_is_found(deployment: Deployment) -> None:
    assert config_drift(deployment.kafka) == {}
    other = replace(deployment.kafka, actions_retention_s=60.0)
    found = config_drift(other)
    assert found[deployment.topics.actions] == {"retention.ms": "604800000"}, "as it was created"
    assert deployment.topics.sequences not in found, "compacted, as before"


def test_no_broker_is_one_clear_error_within_the_time() -> None:
    config = KafkaConfig(bootstrap=f"127.0.0.1:{free_port()}")
    with pytest.raises(
        BrokerUnavailable, match=r"no Kafka broker answered at 127\.0\.0\.1:\d+ within 0\.5 s; start it"
    ):
        wait_for_broker(config, 0.5)
