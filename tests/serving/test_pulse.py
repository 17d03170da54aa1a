"""The pipeline's state for the page: messages in the topics become rates, lags, a bottleneck and a status."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer

from serving.pulse import FrozenPoint, Point, Pulse, Rates, Served, StagePoint, bottleneck
from serving.pulse_follower import PulseFollower
from tests.brokers import Broker, wait_until
from tests.foreign import FOREIGN
from tests.serving.wire import Wire
from wire.config import KafkaConfig
from wire.kafka.consumer import connect
from wire.status import PartitionStatus, WorkerStatus, encode_status
from wire.topics import LAG_KEY, Topics

NOW_MS = 1_800_000_000_000
SERVED = Served(epoch=1, number=7, newest_record_ms=NOW_MS - 2000, swapped_ms=NOW_MS - 900, num_swaps=3)


def lag_message(**changes: Any) -> dict[str, Any]:
    stages = {name: {"lag_records": 0, "lag_s": 0.0, "partitions": {}} for name in
              ("ingest", "sequence", "train", "publish", "serve")}  # fmt: skip
    window = {"model": {"hr10": 0.25}, "popular": {"hr10": 0.125}}
    metrics = {"retrieval_window": window, "ranking_window": {"all": {"ne": 0.75, "ne_baseline": 1.0}}}
    return {"time_ms": NOW_MS, "stages": stages, "metrics": metrics, "num_items": 40, "num_interactions": 1000,
            "num_servers": 2, "throughput": {"interactions_per_s": 1.0}, **changes}  # fmt: skip


def pulse_of(**changes: Any) -> Pulse:
    pulse = Pulse(objective_s=10.0)
    pulse.note_lag(msgspec.json.encode(lag_message(**changes)))
    return pulse


def test_a_point_holds_what_the_trainer_and_the_server_say() -> None:
    point = pulse_of().sample(SERVED, NOW_MS)
    assert (point.epoch, point.number, point.freshness_s, point.status) == (1, 7, 2.0, "fresh")
    assert point.quality == {"model": 0.25, "popular": 0.125}
    assert (point.entropy, point.entropy_baseline) == (0.75, 1.0)
    assert (point.num_items, point.num_interactions, point.num_servers) == (40, 1000, 2)


def test_a_frozen_copy_is_shown_beside_the_fresh_weights_on_its_own_choices() -> None:
    copy = {"newest_record_ms": NOW_MS - 60_000, "num_interactions": 900, "num": 300}
    metrics = {"frozen": {**copy, "fresh": {"hr10": 0.25}, "frozen": {"hr10": 0.2}}}
    assert pulse_of(metrics=metrics).sample(SERVED, NOW_MS).frozen == FrozenPoint(NOW_MS - 60_000, 900, 0.2, 0.25)
    for none in (None, {}, {**copy, "fresh": {"hr10": 0.25}}, {**copy, "fresh": 1, "frozen": {"hr10": "x"}}):
        assert pulse_of(metrics={"frozen": none}).sample(SERVED, NOW_MS).frozen is None


def worker(partition: int, num: int, epoch: int = 1) -> bytes:
    told = PartitionStatus(num_accepted=num, num_dead=1, relayed_number=num // 2, writer_epoch=epoch)
    return encode_status(WorkerStatus(component=f"w{partition}", time_ms=NOW_MS, partitions={partition: told}))


def test_rates_are_those_of_the_last_seconds() -> None:
    pulse = pulse_of()
    for second in range(10):
        pulse.note_status(worker(0, 100 * second))
        pulse.note_status(worker(1, 50 * second))
        point = pulse.sample(SERVED, NOW_MS + 1000 * second)
    assert point.rates["actions"] == 150.0
    assert point.rates["weights"] == 0.0


def test_a_worker_that_lost_its_partition_is_not_listened_to() -> None:
    pulse = pulse_of()
    pulse.note_status(worker(0, 100, epoch=2))
    pulse.note_status(worker(0, 7, epoch=1))
    pulse.sample(SERVED, NOW_MS)
    pulse.note_status(worker(0, 200, epoch=2))
    assert pulse.sample(SERVED, NOW_MS + 1000).rates["actions"] == 100.0


def test_a_trainer_that_is_silent_is_the_bottleneck_and_no_other_stage() -> None:
    stages = lag_message()["stages"] | {"ingest": {"lag_records": 9, "lag_s": 2.0}}
    pulse = pulse_of(stages=stages)
    assert [pulse.sample(SERVED, NOW_MS + each).bottleneck for each in (0, 1000)] == ["", "ingest"]
    assert [pulse.sample(SERVED, NOW_MS + each).bottleneck for each in (5000, 6000)] == ["", "train"]


def test_a_counter_that_jumps_back_starts_anew() -> None:
    rates = Rates()
    assert [rates.rate("x", float(n), value) for n, value in enumerate((0, 10, 20, 0, 5))] == [0, 10, 10, 0, 5]


def test_the_bottleneck_is_the_stage_that_is_furthest_behind() -> None:
    stages = {"ingest": StagePoint(10, 0.5), "train": StagePoint(500, 7.0), "publish": StagePoint(3, 2.0)}
    assert bottleneck(stages) == "train"
    assert bottleneck({"ingest": StagePoint(10, 0.5), "train": StagePoint()}) == ""


def test_one_record_on_its_way_is_no_bottleneck() -> None:
    behind, caught_up = {"train": {"lag_records": 5, "lag_s": 9.0}}, {"train": {"lag_records": 0, "lag_s": 0.0}}
    pulse, found = pulse_of(), []
    for stages in (behind, caught_up, behind, behind, caught_up):
        pulse.note_lag(msgspec.json.encode(lag_message(stages=stages)))
        found.append(pulse.sample(SERVED, NOW_MS).bottleneck)
    assert found == ["", "", "", "train", ""]


@pytest.mark.parametrize(
    ("served", "changes", "status"),
    [
        (Served(), {}, "waiting"),
        (msgspec.structs.replace(SERVED, broker=False), {}, "away"),
        (SERVED, {"time_ms": NOW_MS - 11_000}, "silent"),
        (msgspec.structs.replace(SERVED, newest_record_ms=NOW_MS - 11_000), {}, "idle"),
        (msgspec.structs.replace(SERVED, newest_record_ms=NOW_MS - 11_000),
         {"stages": {"train": {"lag_records": 5, "lag_s": 9.0}}}, "behind"),
        (msgspec.structs.replace(SERVED, newest_record_ms=NOW_MS - 61_000),
         {"stages": {"train": {"lag_records": 5, "lag_s": 9.0}}}, "stale"),
    ],
)  # fmt: skip
def test_one_word_says_how_it_stands(served: Served, changes: dict[str, Any], status: str) -> None:
    assert pulse_of(**changes).sample(served, NOW_MS).status == status


@pytest.mark.parametrize(
    "value",
    [b"", b"[]", b"{", b'{"stages": 3, "metrics": []}', b'{"metrics": {"retrieval_window": {"model": 1}}}'],
)
def test_what_cannot_be_read_changes_nothing(value: bytes) -> None:
    pulse = Pulse(10.0)
    pulse.note_lag(value)
    pulse.note_status(value)
    point = pulse.sample(SERVED, NOW_MS)
    assert (point.bottleneck, point.quality, point.rates["actions"]) == ("", {}, 0.0)


def test_reasons_that_others_make_up_take_no_room() -> None:
    pulse = Pulse(10.0)
    for number in range(1000):
        pulse.note_letter([("reason", b"%d" % number)])
    point = pulse.sample(SERVED, NOW_MS)
    assert len(point.reasons) <= 51
    assert sum(point.reasons.values()) == point.dead_letters == 1000


@pytest.mark.slow
def test_the_topics_are_followed_as_they_are_written(kafka: Broker, topic_prefix: str) -> None:
    wire, pulse = Wire(kafka, topic_prefix), Pulse(10.0)
    topics = wire.topics

    def consumer() -> KafkaConsumer:
        return connect(wire.kafka, 20)

    def letter(reason: bytes) -> None:
        wire._producer.send(topics.dead_letters, key=b"k", value=b"v", headers=[("reason", reason)], partition=0)

    letter(b"malformed")
    follower = PulseFollower(consumer, lambda: topics, pulse, lambda: SERVED)
    follower.start()
    try:
        letter(b"future")
        letter(b"future")
        wire._producer.send(topics.lag, key=LAG_KEY, value=msgspec.json.encode(lag_message()), partition=0)
        wire._producer.send(topics.status, key=b"w0", value=worker(0, 4), partition=0)

        def told() -> bool:
            last = pulse.points[-1] if pulse.points else None
            return isinstance(last, Point) and last.num_items == 40 and last.dead_letters == 3

        wait_until(told, 60, "what was written to be in a point")
        assert pulse.points[-1].reasons == {"malformed": 1, "future": 2}
    finally:
        follower.stop()
        follower.join(60)
        wire.close()
    assert not follower.is_alive()


@pytest.mark.slow
def test_after_a_switch_the_other_lines_lag_is_followed_and_nothing_is_counted_twice(
    kafka: Broker, topic_prefix: str
) -> None:
    main, pulse = Wire(kafka, topic_prefix), Pulse(10.0)
    beside, followed = Wire(kafka, topic_prefix, line="b"), [main.topics]
    producer = main._producer
    producer.send(main.topics.dead_letters, key=b"k", value=b"v", headers=[("reason", b"future")], partition=0)
    for topics, num_items in ((main.topics, 40), (beside.topics, 77)):
        told = msgspec.json.encode(lag_message(num_items=num_items))
        producer.send(topics.lag, key=LAG_KEY, value=told, partition=0)
    producer.flush(20)
    follower = PulseFollower(lambda: connect(main.kafka, 20), lambda: followed[0], pulse, lambda: SERVED)

    def last() -> tuple[int, dict[str, int], int]:
        points = list(pulse.points)[-1:]
        return (points[0].num_items, points[0].reasons, points[0].dead_letters) if points else (0, {}, 0)

    follower.start()
    try:
        for topics, num_items in ((main.topics, 40), (beside.topics, 77), (main.topics, 40)):
            followed[0] = topics
            wait_until(lambda wanted=num_items: last() == (wanted, {"future": 1}, 1), 60, "the line to be shown")
    finally:
        follower.stop()
        follower.join(60)
        main.close()
        beside.close()


def test_before_the_topics_exist_the_page_says_what_it_waits_for(kafka: Broker, topic_prefix: str) -> None:
    pulse, config = Pulse(10.0), KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix)
    follower = PulseFollower(lambda: connect(config, 20), lambda: Topics.under(topic_prefix), pulse, Served)
    follower.start()
    try:
        wait_until(lambda: pulse.num_points > 1, 30, "points without topics")
        assert pulse.points[-1].status == "waiting"
    finally:
        follower.stop()
        follower.join(60)
    assert not follower.is_alive()


STRANGE = (
    b'{"stages": 5}', b'{"stages": {"train": null}}', b'{"num_items": "x"}',
    b'{"version": 5, "metrics": 5, "freshness": 5, "loss": 5, "throughput": 5}',
    b'{"metrics": {"retrieval_window": 5, "ranking_window": []}, "num_interactions": [1]}',
    msgspec.json.encode(lag_message(metrics={"retrieval_window": {"model": {"hr10": "x"}}, "ranking_window": 5})),
    msgspec.json.encode(lag_message(stages={"train": {"lag_records": 5, "lag_s": "x"}})),
)  # fmt: skip


@pytest.mark.parametrize("value", [*FOREIGN, *STRANGE])
def test_what_somebody_else_writes_to_the_topics_ends_no_thread(value: bytes | None) -> None:
    pulse = Pulse(objective_s=10.0)
    pulse.note_lag(value)
    pulse.note_status(value or b"")
    pulse.hear_status(value or b"", NOW_MS)
    pulse.note_letter([("reason", value)])  # type: ignore[list-item]
    pulse.note_letter([])
    assert pulse.sample(SERVED, NOW_MS).dead_letters == 2
