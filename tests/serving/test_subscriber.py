"""Promise 5: a server answers only from complete, ascending, unfenced versions. Each test uses a real topic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from kafka.errors import KafkaTimeoutError

from serving.versions.subscriber import CONTACT_EVERY_S, WeightsSubscriber
from tests.brokers import Broker, wait_until
from tests.serving.wire import Wire, served
from tests.serving.world import Record, World, claim
from wire.assembler import VersionAssembler
from wire.kafka.polls import Consumer
from wire.weights import Quality, decode_manifest, encode_manifest


@pytest.fixture
def wire(kafka: Broker, topic_prefix: str) -> Iterator[Wire]:
    wire = Wire(kafka, topic_prefix)
    yield wire
    wire.close()


def quick_world(epoch: int = 1, seed: int = 0) -> World:
    return World(seed=seed, epoch=epoch, num_users=2)


def corrupt(record: Record) -> Record:
    key, headers, value = record
    return key, headers, value[:-1] + bytes([value[-1] ^ 1])


def never_served(wire: Wire, subscriber: WeightsSubscriber, world: World, bad: list[Record]) -> None:
    """Assert that ``bad`` is never served, nor a delta that builds on it, but that the next base is."""
    swaps = subscriber.manager.num_swaps
    wire.send(bad)
    wire.publish(world, "delta")
    wait_until(lambda: subscriber.intake.counters.num_unlinked > 0, 60, "the delta that builds on it to be seen")
    good = wire.publish(world, "base")
    served(subscriber, good)
    assert subscriber.manager.num_swaps == swaps + 1, "only the good base came into service"


TORN = {
    "chunks without a manifest": lambda records: records[:-1],
    "a corrupt chunk": lambda records: [corrupt(records[0]), *records[1:]],
    "a missing chunk": lambda records: records[1:],
    "the manifest before its chunks": lambda records: [records[-1], *records[:-1]],
    "a manifest alone": lambda records: records[-1:],
    "a manifest that is no manifest": lambda records: [*records[:-1], (records[-1][0], records[-1][1], b"{}")],
    "a checksum that is another's": lambda records: [
        *records[:-1],
        (
            *records[-1][:2],
            encode_manifest(msgspec.structs.replace(decode_manifest(records[-1][2]), checksum="0" * 32)),
        ),
    ],
}


@pytest.mark.parametrize("kind", ["base", "delta"])
@pytest.mark.parametrize("how", TORN)
def test_a_torn_version_is_never_served(wire: Wire, how: str, kind: str) -> None:
    world = quick_world()
    with wire.subscriber() as subscriber:
        served(subscriber, wire.publish(world))
        never_served(wire, subscriber, world, TORN[how](world.records(kind, wire.next_offset)))


def test_chunks_in_any_order_before_their_manifest_are_one_version(wire: Wire) -> None:
    world = quick_world()
    records = world.records("base", 0)
    with wire.subscriber() as subscriber:
        wire.send([*records[-2::-1], *records[:1], records[-1]])
        served(subscriber, (1, 0))


def test_without_the_checksum_a_corrupt_chunk_would_be_served(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    world = quick_world()
    records = world.records("base", 0)
    manifest = decode_manifest(records[-1][2])
    weights = world.learner.model.start_M.detach().numpy()[:4].tobytes()
    at, (key, headers, chunk) = next((at, each) for at, each in enumerate(records[:-1]) if weights in (each[2] or b""))
    assert chunk is not None
    place = chunk.index(weights)
    records[at] = key, headers, chunk[:place] + bytes([chunk[place] ^ 1]) + chunk[place + 1 :]
    monkeypatch.setattr("wire.assembler.checksum", lambda blob: manifest.checksum)
    monkeypatch.setattr("serving.model.soundness._check_probe", lambda version, network: None)  # which might notice too
    with wire.subscriber() as subscriber:
        wire.send(records)
        served(subscriber, (1, 0))


def test_a_zombie_trainer_is_fenced_off_for_ever(wire: Wire) -> None:
    zombie, heir = quick_world(epoch=1), quick_world(epoch=2, seed=1)
    with wire.subscriber() as subscriber:
        served(subscriber, wire.publish(zombie))
        wire.send([claim(2)])
        wire.publish(zombie, "delta")
        wire.publish(zombie, "base")
        served(subscriber, wire.publish(heir))
        swaps = subscriber.manager.num_swaps
        wire.publish(zombie, "base")
        wire.publish(zombie, "delta")
        served(subscriber, wire.publish(heir, "delta"))
        assert subscriber.manager.num_swaps == swaps + 1
    with wire.subscriber() as late:
        wait_until(lambda: late.manager.current is not None, 60, "a version")
        assert late.manager.current is not None
        assert late.manager.current.which == (2, 1), "also for a server that starts after all this"


def test_a_zombies_base_behind_the_claim_does_not_fool_a_server_that_starts_later(wire: Wire) -> None:
    zombie, heir = quick_world(epoch=1), quick_world(epoch=2, seed=1)
    wire.publish(zombie)
    wire.send([claim(2)])
    wire.publish(heir)
    wire.publish(heir, "delta")
    wire.publish(zombie, "base")
    wire.publish(zombie, "delta")
    with wire.subscriber() as subscriber:
        served(subscriber, (2, 1))
        served(subscriber, wire.publish(heir, "delta"))


def test_without_the_floor_a_zombie_would_be_served(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VersionAssembler, "_raise_floor", lambda self, value: None)
    zombie = quick_world()
    with wire.subscriber() as subscriber:
        served(subscriber, wire.publish(zombie))
        wire.send([claim(2)])
        served(subscriber, wire.publish(zombie, "delta"))


def test_a_gap_in_the_numbers_waits_for_the_next_base(wire: Wire) -> None:
    world = quick_world()
    with wire.subscriber() as subscriber:
        served(subscriber, wire.publish(world))
        world.records("delta", 0)  # learned and numbered, but never sent
        wire.publish(world, "delta")
        wire.publish(world, "delta")
        wait_until(lambda: subscriber.intake.counters.num_unlinked >= 2, 60, "the gap to be seen")
        assert subscriber.manager.current is not None
        assert subscriber.manager.current.which == (1, 0)
        served(subscriber, wire.publish(world))
        served(subscriber, wire.publish(world, "delta"))


def test_a_server_starts_from_the_topic_alone_wherever_it_stands(wire: Wire) -> None:
    world = quick_world()
    for kind in ("base", "delta", "delta", "base", "delta"):
        wire.publish(world, kind)
    records = world.records("delta", wire.next_offset)
    wire.send(records[:1])
    with wire.subscriber() as subscriber:
        served(subscriber, (1, 4))
        assert subscriber.intake.counters.num_applied == 2, "the last base and its delta, not the whole topic"
        wire.send(records[1:])
        served(subscriber, (1, 5))


def test_a_server_that_starts_in_the_middle_of_the_first_version_gets_all_of_it(wire: Wire) -> None:
    world = quick_world()
    records = world.records("base", 0)
    wire.send(records[:2])
    with wire.subscriber() as subscriber:
        wait_until(subscriber.started_following.is_set, 60, "the subscriber to follow")
        wire.send(records[2:])
        served(subscriber, (1, 0))


def test_where_the_last_base_is_damaged_a_server_starts_from_the_one_before(wire: Wire) -> None:
    world = quick_world()
    wire.publish(world)
    wire.publish(world, "delta")
    records = world.records("base", wire.next_offset)
    wire.send([corrupt(records[0]), *records[1:]])
    wire.publish(world, "delta")
    with wire.subscriber() as subscriber:
        served(subscriber, (1, 1))
        served(subscriber, wire.publish(world))


@pytest.mark.parametrize("kind", ["base", "delta"])
def test_a_server_that_starts_behind_a_version_that_is_refused_answers_from_the_one_before(
    wire: Wire, kind: str
) -> None:
    world = quick_world()
    wire.publish(world)
    good = wire.publish(world, "delta")
    *chunks, (key, headers, manifest) = world.records(kind, wire.next_offset)
    otherwise = msgspec.structs.replace(decode_manifest(manifest), quality=Quality(probe=[1e3]))
    wire.send([*chunks, (key, headers, encode_manifest(otherwise))])
    wire.publish(world, "delta")
    with wire.subscriber() as subscriber:
        served(subscriber, good)
        assert subscriber.intake.counters.num_refused > 0
        served(subscriber, wire.publish(world))


def test_a_topic_that_was_created_again_is_followed_from_its_start(wire: Wire) -> None:
    old, new = quick_world(epoch=7), quick_world(epoch=0, seed=1)
    with wire.subscriber() as subscriber:
        served(subscriber, wire.publish(old))
        wire.replace_weights()
        wire.publish(new)
        served(subscriber, wire.publish(new, "delta"))
        served(subscriber, wire.publish(new, "delta"))


def test_a_topic_that_is_gone_is_not_taken_for_a_broker_that_is_away(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    with wire.subscriber() as subscriber:
        served(subscriber, wire.publish(quick_world(epoch=7)))
        wire.remove_weights()
        told = f"topic {wire.topics.weights} is gone: headrace topics --create"
        wait_until(lambda: told in caplog.text, 60, "the server to say so")
        assert "the broker does not answer" not in caplog.text


def test_versions_come_although_the_broker_does_not_say_in_time_where_the_topic_ends(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: Any, **__: Any) -> dict[Any, int]:
        time.sleep(CONTACT_EVERY_S)
        raise KafkaTimeoutError("no answer")

    world = quick_world()
    with wire.subscriber() as subscriber:
        served(subscriber, wire.publish(world))
        monkeypatch.setattr(Consumer, "end_offsets", late)
        served(subscriber, wire.publish(world, "delta"))
        wait_until(lambda: not subscriber.contact.is_up, 60, "it to be noticed")
        served(subscriber, wire.publish(world, "delta"))


def test_a_server_that_takes_one_topic_for_another_would_be_stuck(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.topic_thread.topic_id_of", lambda consumer, topic: "")
    with wire.subscriber() as subscriber:
        served(subscriber, wire.publish(quick_world(epoch=7)))
        wire.replace_weights()
        newer = wire.publish(quick_world(epoch=0, seed=1))
        with pytest.raises(AssertionError, match="waited"):
            served(subscriber, newer, 8)


def test_foreign_records_are_counted_and_do_not_fill_the_log(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    world = quick_world()
    with wire.subscriber() as subscriber:
        served(subscriber, wire.publish(world))
        wire.send([(b"foreign", [], b"7 bytes")] * 1_500)
        served(subscriber, wire.publish(world, "delta"))
    assert subscriber.intake.counters.num_dropped == 1_500
    told = [record.getMessage() for record in caplog.records if "it is skipped" in record.getMessage()]
    assert len(told) == 11, "the first ten, and the thousandth"
    assert told[-1].endswith("(number 1000 so far)")


def test_a_server_without_a_version_says_what_it_waits_for(wire: Wire) -> None:
    world = quick_world()
    with wire.subscriber() as subscriber:
        assert subscriber.started_following.wait(60)
        assert subscriber.waits_for == f"a first version: {wire.topics.weights} has none yet; is a trainer running?"
        counters, rollout = subscriber.intake.counters, subscriber.intake.rollout
        counters.num_unlinked = 2
        assert subscriber.waits_for.startswith("a base: the 2 versions in ")
        counters.num_refused = 1
        assert "1 in " in subscriber.waits_for
        rollout.hold((1, 7), "it is not in the topic")
        assert subscriber.waits_for == "version 1/7: it is not in the topic"
        served(subscriber, wire.publish(world))
        assert subscriber.waits_for == ""
