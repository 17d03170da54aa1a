"""Creating the topics as `wire.topics` describes them, and refusing a broker whose topics contradict it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable, TopicsMismatch
from wire.kafka.addresses import announced, refuse_silence
from wire.kafka.options import made, sync_options
from wire.kafka.refusal import refusal
from wire.kafka.retry import wait_for_broker
from wire.topics import POLICY, Topic, Topics, topics_of

CONNECT_S = 5.0


def make_admin(config: KafkaConfig) -> KafkaAdminClient:
    """An admin client. Raises ``KafkaError`` or OSError when no broker answers."""
    wait_for_broker(config, CONNECT_S)  # the client might wait for ever: kafka-python 3.0 ignores its own time-out
    refuse_silence(config)
    return made(KafkaAdminClient, {"request_timeout_ms": 10_000, **sync_options(config)})


def ensure_topics(config: KafkaConfig, timeout_s: float = 30.0, *, despite_added: bool = False) -> list[str]:
    """Create missing topics and check existing ones; returns the names of the created ones.

    Raises `BrokerUnavailable` when no broker answers within ``timeout_s``, `TopicsMismatch` when a
    partition count disagrees (``despite_added``: is smaller) or a topic's ``cleanup.policy`` removes what is needed.
    """
    deadline = time.monotonic() + timeout_s
    with announced(config, timeout_s):
        wait_for_broker(config, timeout_s)
    while True:
        try:
            return _ensure(config, deadline, despite_added)
        except KafkaError as error:
            if refused := refusal(error, config.bootstrap):
                raise refused from error
            if time.monotonic() >= deadline or not error.retriable:
                raise BrokerUnavailable(
                    f"the broker at {config.bootstrap} could not say which topics it has or create them: {error!r}; "
                    "see its log, and this client's permissions"
                ) from error
            time.sleep(0.2)


def _ensure(config: KafkaConfig, deadline: float, despite_added: bool) -> list[str]:
    wanted = topics_of(config)
    admin = make_admin(config)
    try:
        existing = partition_counts(admin)
        _check(config, existing, despite_added)
        missing = [topic for topic in wanted if topic.name not in existing]
        created = [topic.name for topic in missing if _create(admin, topic)]
        while not all(topic.name in existing for topic in wanted):
            if time.monotonic() > deadline:
                hidden = ", ".join(topic.name for topic in missing if topic.name not in existing)
                raise BrokerUnavailable(
                    f"expected to see {hidden}, which the broker at {config.bootstrap} has but does not show; "
                    "give this client's user the right to describe every topic (docs/operations.md, Permissions), or "
                    "see the broker's log"
                )
            time.sleep(0.05)
            existing = partition_counts(admin)
        _check(config, existing, despite_added)
        check_policies(admin, config)
        return created
    finally:
        admin.close()


def config_drift(config: KafkaConfig) -> dict[str, dict[str, str]]:
    """Topic → setting → the broker's value, wherever the configuration has a different one.

    A topic keeps the settings that it was created with: a later change of the configuration does not reach it.
    Settings that a broker does not report (`untold`) are skipped. Raises `KafkaError`.
    """
    admin = make_admin(config)
    try:
        return _drift(admin, topics_of(config))
    finally:
        admin.close()


def untold(config: KafkaConfig) -> list[str]:
    """Topics whose settings the broker does not show: the client may lack the right to describe them. Raises
    `KafkaError`."""
    admin = make_admin(config)
    try:
        present = {topic.name for topic in topics_of(config)} & partition_counts(admin).keys()
        return sorted(name for name, settings in _reported(admin, present).items() if not settings)
    finally:
        admin.close()


def _drift(admin: KafkaAdminClient, topics: Iterable[Topic]) -> dict[str, dict[str, str]]:
    wanted = {topic.name: topic.settings for topic in topics}
    reported = _reported(admin, wanted.keys() & partition_counts(admin))
    found = {name: _differing(wanted[name], settings) for name, settings in reported.items()}
    return {name: settings for name, settings in found.items() if settings}


def _reported(admin: KafkaAdminClient, names: Collection[str]) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """The settings of each topic, as the client returns them; empty for those that the broker says nothing about."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    reported = admin.describe_configs(asked, config_filter="all").get("topic", {}) if asked else {}
    return {name: reported.get(name, {}) for name in names}


def check_policies(admin: KafkaAdminClient, config: KafkaConfig) -> None:
    """Raise `TopicsMismatch` if a topic's ``cleanup.policy`` removes what is needed. Afterwards that could not be
    noticed, since transactions leave the same gaps in the offsets as compaction does. Raises `KafkaError`."""
    topics = {topic.name: topic for topic in topics_of(config) if topic.other_policy}
    for name, differing in _drift(admin, topics.values()).items():
        if has := differing.get(POLICY):
            wanted = topics[name].settings[POLICY]
            raise TopicsMismatch(
                f"topic {name}: expected {POLICY} = {wanted}, the broker has {has}: {topics[name].other_policy}. "
                f"Set it (kafka-configs.sh --bootstrap-server {config.bootstrap} --alter --entity-type topics "
                f"--entity-name {name} --add-config {POLICY}={wanted}), then start again; what was removed before is "
                "lost"
            )


def delete_topics(config: KafkaConfig) -> None:
    """Delete every topic of the deployment, with all records. Raises `KafkaError`."""
    admin = make_admin(config)
    try:
        admin.delete_topics([topic.name for topic in topics_of(config)])
    finally:
        admin.close()


def _differing(wanted: Mapping[str, str], reported: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    has = {key: str(reported[key]["value"]) for key in wanted if key in reported}
    return {key: value for key, value in has.items() if value != wanted[key]}


def partition_counts(admin: KafkaAdminClient) -> dict[str, int]:
    """Name → number of partitions, for every topic that the broker shows."""
    return {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics() if topic["partitions"]}


def _create(admin: KafkaAdminClient, topic: Topic) -> bool:
    """Create one topic; False if it exists by now, because another worker started at the same moment."""
    new = NewTopic(
        name=topic.name,
        num_partitions=topic.num_partitions,
        replication_factor=topic.replication_factor,
        topic_configs=dict(topic.settings),
    )
    try:
        admin.create_topics([new])
    except TopicAlreadyExistsError:
        return False
    return True


def _check(config: KafkaConfig, existing: Mapping[str, int], despite_added: bool) -> None:
    for topic in topics_of(config):
        num = existing.get(topic.name, topic.num_partitions)
        if num < topic.num_partitions or (num > topic.num_partitions and not despite_added):
            raise mismatch(config, topic, existing)


def mismatch(config: KafkaConfig, topic: Topic, existing: Mapping[str, int]) -> TopicsMismatch:
    """The error of a topic with another number of partitions than the configuration says. Actions and sequences are
    created with the same number: where they differ, it is not the configuration that is wrong."""
    names = Topics.under(config.prefix)
    as_created = existing.get(names.actions) == existing.get(names.sequences)
    return (partitions_mismatch if as_created else partitions_added)(
        topic.name, topic.num_partitions, existing[topic.name]
    )


ADDED = (
    "Kafka cannot remove them, and kafka.partitions stays what it was, since it decides where a user's sequence lives: "
    "see docs/operations.md, Partitions that were added"
)


def partitions_mismatch(name: str, expected: int, num_partitions: int) -> TopicsMismatch:
    """The error of a topic with another number of partitions than the configuration says."""
    return TopicsMismatch(
        f"topic {name}: expected {expected} partitions, the broker has {num_partitions}; set kafka.partitions = "
        f"{num_partitions} if the deployment was created with that many, or choose another kafka.prefix; if some were "
        f"added, {ADDED}"
    )


def partitions_added(name: str, before: int, num_partitions: int) -> TopicsMismatch:
    """The error of a topic that has been given more partitions."""
    return TopicsMismatch(
        f"topic {name}: expected {before} partitions, the broker has {num_partitions}: some were added; {ADDED}"
    )
