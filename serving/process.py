"""The server process: bind, connect, listen; and shut down cleanly when told to."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from kafka import KafkaConsumer

from model.device import choose_device
from model.growing import keep_in
from serving.config import ServingConfig
from serving.contact import Connector
from serving.errors import StartError, says_what_to_do
from serving.heartbeat import Heartbeat
from serving.http.access import Access
from serving.http.app import build_app
from serving.http.listener import bind, listen
from serving.pulse_follower import PulseFollower
from serving.search.keeper import SearchKeeper
from serving.sender import ActionSender
from serving.service import Service
from serving.titles import Titles
from serving.topic_follower import TopicFollower
from serving.topic_thread import TopicThread
from serving.users.addresses import address_of
from serving.users.follower import HistoryFollower
from serving.users.histories import Histories
from serving.users.peer_follower import PeerFollower
from serving.versions.guard import Band, Guard
from serving.versions.intake import VersionIntake
from serving.versions.manager import WeightsManager
from serving.versions.rollout import PinFollower
from serving.versions.subscriber import WeightsSubscriber
from wire.config import KafkaConfig
from wire.kafka.consumer import PATIENT, reconnect
from wire.shape import shape_of
from wire.topics import Topics

logger = logging.getLogger(__name__)
FOLLOWER_CONNECT_S = 5.0
"""How long a broker may take to answer the threads without which the server answers."""
JOIN_S = 10.0
"""How long all threads together may take to end."""
SWITCH_INTERVAL_S = 0.0005
"""How long a computing thread may hold the interpreter while the event loop waits for it (Python's default: 5 ms)."""
FOLLOWING = {"auto_offset_reset": "none", "metadata_max_age_ms": 5000}
"""Followers choose their own positions, and soon learn of a change of partition leaders."""


def tune_interpreter() -> None:
    """Keep answers from waiting for the interpreter: see `SWITCH_INTERVAL_S`; and exempt everything loaded so far from
    garbage collection, which would traverse it for 50 ms or more every few hundred requests."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def run_server(settings: Any) -> int:
    """Serve until told to stop; returns the exit status. Raises `StartError` and `ConfigError`.

    ``settings``: the configuration, with sections ``serving``, ``action``, ``sequence`` and ``kafka``.
    """
    config = settings.serving
    torch.set_num_threads(config.num_threads)
    keep_in(config.tables_folder)
    tune_interpreter()
    device = choose_device(config.device, "serving.device")
    access, titles = Access.read(config.tokens_file), Titles.read(config.titles_file)
    with contextlib.closing(bind(config)) as listener:
        host, port = listener.getsockname()[:2]
        name = config.name or f"server@{platform.node()}:{port}"
        with connected(settings, device, name, config.address or address_of(host, port)) as service:
            service.titles = titles
            app = build_app(service, access)
            print(f"headrace serving: http://{host}:{port}", flush=True)

            def heed_failures() -> None:
                """From now on a failure ends the process in order; so does one that has happened."""
                service.on_failure = lambda: os.kill(os.getpid(), signal.SIGTERM)
                if service.failure is not None:
                    service.on_failure()

            listen(app, listener, config, on_start=heed_failures, on_exit=service.stopping.set,
                   on_end=service.placing.close)  # fmt: skip
            if (failure := service.failure) is not None:
                if says_what_to_do(failure):
                    raise failure
                raise StartError(
                    f"a thread that follows the topics has failed ({type(failure).__name__}: {failure}), so answers "
                    "would only get older: start the server again; the log lines before this one say where it happened"
                ) from failure
    return 0


@contextlib.contextmanager
def connected(settings: Any, device: torch.device, name: str, address: str) -> Iterator[Service]:
    """A service that follows its topics until the block ends, as soon as a broker answers."""
    config: ServingConfig = settings.serving
    kafka: KafkaConfig = settings.kafka
    manager = WeightsManager(device, backend=config.backend, swap_wait_s=config.swap_wait_s)
    shape = shape_of(settings.action, settings.sequence)
    histories = Histories(
        config.history_bytes, settings.sequence.max_context, Topics.under(kafka.prefix).sequences,
        len(settings.action.features), shape.columns, config.catalogue_items, shape,
    )  # fmt: skip
    service = Service(config, manager, histories, line=kafka.line, features=settings.action.features, name=name,
                      earliest_ms=settings.action.min_timestamp_ms, prefix=kafka.prefix)  # fmt: skip
    threads = [*_readers(service, kafka), *_others(service, kafka, address)]
    service.sender = ActionSender(kafka, settings.action) if config.allow_actions or config.allow_forget else None
    for thread in threads:
        thread.start()
    try:
        yield service
    finally:
        for thread in threads:
            thread.stop()
        service.close()
        if service.sender is not None:
            service.sender.close()
        deadline_s = time.monotonic() + JOIN_S
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))


def _readers(service: Service, kafka: KafkaConfig) -> list[TopicThread | TopicFollower]:
    """The threads that read what answers are made from, and which version answers."""
    connector = Connector(kafka, service.contact)
    topics = Topics.under(kafka.prefix, kafka.line)
    guard = Guard(Band.of(service.config))
    intake = VersionIntake(service.manager, service.rollout, guard, service.counters)
    subscriber = WeightsSubscriber(
        connector.of(**FOLLOWING, **PATIENT), topics.weights, intake,
        contact=service.contact, topic_of=lambda line: Topics.under(kafka.prefix, line).weights,
        histories_ready=service.histories_ready,
    )  # fmt: skip
    follower = HistoryFollower(connector.of(**FOLLOWING), topics.sequences, service.histories, service.shard)
    subscriber.on_failure = follower.on_failure = service.fail
    service.waits += [lambda: subscriber.waits_for, lambda: follower.waits_for]
    return [PinFollower(_connecting(kafka), topics.control, service.rollout), subscriber, follower]


def _others(
    service: Service, kafka: KafkaConfig, address: str
) -> Iterator[Heartbeat | PeerFollower | SearchKeeper | PulseFollower]:
    """The threads for what the configuration asks for, and the one that reports."""
    config, topics = service.config, Topics.under(kafka.prefix, kafka.line)
    yield Heartbeat(kafka, topics.status, service.name, service.manager, service.count_requests, config.status_every_s,
                    service.rollout, service.shard, address, service.search)  # fmt: skip
    if not service.shard.is_whole:
        import serving.users.forwarding  # noqa: F401  (half a second; in the event loop all requests would wait for it)

        yield PeerFollower(_connecting(kafka), topics.status, service.placing.peers, service.placing.known)
    if service.search is not None:
        yield SearchKeeper(service.search, service.manager)
    if config.page:
        yield PulseFollower(
            _connecting(kafka), lambda: Topics.under(kafka.prefix, service.rollout.line), service.pulse, service.served
        )


def _connecting(kafka: KafkaConfig) -> Callable[[], KafkaConsumer]:
    return partial(reconnect, kafka, FOLLOWER_CONNECT_S, **PATIENT)
