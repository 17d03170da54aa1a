"""Which version answers: pinned versions, and versions held back because they are worse than the last good ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import msgspec
import numpy as np
import pytest
from kafka import KafkaProducer

from serving.config import ServingConfig
from serving.versions.guard import Band, Guard
from serving.versions.rollout import PinFollower, Rollout
from serving.versions.subscriber import WeightsSubscriber
from tests.brokers import Broker, wait_until
from tests.foreign import FOREIGN
from tests.serving.wire import Wire, served
from tests.serving.world import Record, World
from wire.control import PIN_KEY, Pin, encode_decision, parse_version
from wire.errors import VersionError
from wire.kafka.consumer import connect
from wire.weights import Manifest, Quality, decode_manifest, encode_manifest

GOOD = Quality(num_targets=5000, hr10=0.2, ne=0.9, calibration=1.0)


@pytest.fixture
def wire(kafka: Broker, topic_prefix: str) -> Iterator[Wire]:
    wire = Wire(kafka, topic_prefix)
    yield wire
    wire.close()


def of_quality(records: list[Record], quality: Quality) -> list[Record]:
    key, headers, value = records[-1]
    manifest = msgspec.structs.replace(decode_manifest(value), quality=quality, lineage="a")
    return [*records[:-1], (key, headers, encode_manifest(manifest))]


def publish(wire: Wire, world: World, kind: str = "delta", quality: Quality = GOOD) -> tuple[int, int]:
    wire.send(of_quality(world.records(kind, wire.next_offset), quality))
    return world.epoch, world.number


def subscriber(wire: Wire, rollout: Rollout | None = None) -> AbstractContextManager[WeightsSubscriber]:
    return wire.subscriber(rollout, Guard(Band.of(ServingConfig(guard=True))))


def answers_from(thread: WeightsSubscriber, which: tuple[int, int]) -> bool:
    current = thread.manager.current
    return current is not None and current.which == which


def tables_of(thread: WeightsSubscriber) -> np.ndarray:
    assert thread.manager.current is not None
    return np.asarray(thread.manager.current.tables["items"].rows.numpy().copy())


RUINS = {
    "hits": {"hr10": 0.05},
    "entropy": {"ne": 2.0},
    "calibration": {"calibration": 8.0},
}


@pytest.mark.parametrize("how", RUINS)
@pytest.mark.parametrize("kind", ["base", "delta"])
def test_a_ruined_version_is_published_and_not_served_until_one_is_good_again(wire: Wire, how: str, kind: str) -> None:
    world = World(num_users=2)
    ruined = msgspec.structs.replace(GOOD, **RUINS[how])
    with subscriber(wire) as thread:
        publish(wire, world, "base")
        good = publish(wire, world)
        served(thread, good)
        held = publish(wire, world, kind, ruined)
        wait_until(lambda: thread.intake.rollout.held == held, 60, "the ruined version to be held back")
        also = publish(wire, world, "delta", ruined)
        wait_until(lambda: thread.intake.rollout.held == also, 60, "the one behind it to be held back")
        assert answers_from(thread, good)
        assert thread.intake.rollout.num_held == 2
        again = publish(wire, world)
        served(thread, again)
        assert thread.intake.rollout.held is None
        whole = World(num_users=2)
        for each in range(world.number + 1):
            whole.records("base" if each == 0 else "delta", 0)
        rows = whole.learner.items.weight.detach().numpy()
        np.testing.assert_array_equal(tables_of(thread), rows[: len(tables_of(thread))])


def test_without_the_guard_a_ruined_version_would_be_served(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "problem", lambda self, manifest: "")
    world = World(num_users=2)
    with subscriber(wire) as thread:
        served(thread, publish(wire, world, "base"))
        served(thread, publish(wire, world, "delta", msgspec.structs.replace(GOOD, hr10=0.0)))


def test_a_server_that_starts_while_the_newest_is_held_back_answers_from_the_last_good_one(wire: Wire) -> None:
    world = World(num_users=2)
    publish(wire, world, "base")
    good = publish(wire, world)
    ruined = publish(wire, world, "delta", msgspec.structs.replace(GOOD, ne=3.0))
    with subscriber(wire) as thread:
        served(thread, good)
        wait_until(lambda: thread.intake.rollout.held == ruined, 60, "the newest to be held back")
        assert "normalised entropy 3.000, 0.900 before" in thread.intake.rollout.why


def test_a_new_line_of_training_answers_when_it_is_as_good(wire: Wire) -> None:
    old, new = World(num_users=2), World(num_users=2, epoch=2, seed=1)
    with subscriber(wire) as thread:
        good = publish(wire, old, "base")
        served(thread, good)
        for kind, quality in (
            ("base", Quality(num_targets=20, hr10=0.5)),
            ("delta", Quality(num_targets=1500, hr10=0.05)),
        ):
            records = of_quality(new.records(kind, wire.next_offset), quality)
            manifest = msgspec.structs.replace(decode_manifest(records[-1][2]), lineage="b")
            wire.send([*records[:-1], (*records[-1][:2], encode_manifest(manifest))])
            wait_until(lambda: thread.intake.rollout.held == (2, new.number), 60, "the new line to be held back")
            assert answers_from(thread, good)
        served(thread, publish(wire, new))


def manifests(num: int, first: int = 0, every_ms: int = 1000, lineage: str = "a", **quality: float) -> list[Manifest]:
    """Versions that a trainer publishes one after the other."""
    (record,) = World(num_users=1).records("base", 0)[-1:]
    made = decode_manifest(record[2])
    return [
        msgspec.structs.replace(
            made, number=number, created_ms=every_ms * number, lineage=lineage,
            quality=msgspec.structs.replace(GOOD, **quality),
        )
        for number in range(first, first + num)
    ]  # fmt: skip


def held_by(guard: Guard, versions: list[Manifest]) -> list[bool]:
    """What the subscriber does with each."""
    held = []
    for each in versions:
        held.append(bool(guard.problem(each)))
        if not held[-1]:
            guard.accept(each)
    return held


def test_versions_are_not_held_back_for_ever_in_a_world_that_has_changed() -> None:
    guard = Guard(Band.of(ServingConfig(guard=True, guard_patience_s=20)))
    assert not any(held_by(guard, manifests(30)))
    held = held_by(guard, manifests(200, 30, hr10=0.05))
    assert held == [True] * 20 + [False] * 180
    assert held_by(guard, manifests(3, 230, hr10=0.01)) == [True] * 3, "it still holds back what falls from there"


@pytest.mark.parametrize(("window", "is_judged"), [(4000, True), (0, False)])
def test_a_window_that_is_shorter_than_enough_targets_is_enough(window: int, *, is_judged: bool) -> None:
    guard = Guard(Band.of(ServingConfig(guard=True, guard_min_targets=5000)))
    held_by(guard, manifests(30, num_targets=4000, window=window))
    assert held_by(guard, manifests(3, 30, num_targets=4000, window=window, hr10=0.0)) == [is_judged] * 3


def test_a_guard_without_patience_holds_for_ever() -> None:
    guard = Guard(Band.of(ServingConfig(guard=True, guard_patience_s=0)))
    held_by(guard, manifests(30))
    assert all(held_by(guard, manifests(500, 30, hr10=0.05)))


def test_patience_begins_anew_when_a_version_was_good() -> None:
    guard = Guard(Band.of(ServingConfig(guard=True, guard_patience_s=20)))
    held_by(guard, manifests(30))
    for first in (30, 50):
        assert all(held_by(guard, manifests(15, first, ne=3.0)))
        assert held_by(guard, manifests(5, first + 15)) == [False] * 5


def test_what_the_most_popular_items_have_lost_too_is_not_held_against_a_version() -> None:
    guard = Guard(Band.of(ServingConfig(guard=True)))
    held_by(guard, manifests(30, popular_hr10=0.08))
    assert not any(held_by(guard, manifests(5, 30, hr10=0.08, popular_hr10=0.03)))
    assert all(held_by(guard, manifests(5, 35, hr10=0.03, popular_hr10=0.08)))


def test_a_new_line_of_training_gets_more_time() -> None:
    guard = Guard(Band.of(ServingConfig(guard=True, guard_patience_s=20, guard_new_line_s=60)))
    held_by(guard, manifests(30))
    assert held_by(guard, manifests(100, 30, lineage="b", hr10=0.02)) == [True] * 60 + [False] * 40


def test_a_pin_goes_back_stays_and_lets_go(wire: Wire) -> None:
    world = World(num_users=2)
    with subscriber(wire) as thread:
        names = [publish(wire, world, kind) for kind in ("base", "delta", "delta", "base", "delta")]
        served(thread, names[-1])
        newest = tables_of(thread)
        thread.intake.rollout.ordered = Pin(epoch=1, number=2, made_ms=0)
        served(thread, (1, 2))
        assert not np.array_equal(tables_of(thread), newest)
        swaps = thread.manager.num_swaps
        publish(wire, world)
        publish(wire, world, "base")
        last = publish(wire, world)
        thread.intake.rollout.ordered = None
        served(thread, last)
        assert thread.manager.num_swaps == swaps + 1, "nothing came into service while it was pinned"


def test_old_versions_that_are_read_again_after_a_pin_are_not_told_of(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(num_users=2)
    with subscriber(wire) as thread:
        names = [publish(wire, world, kind) for kind in ("base", "delta", "delta", "delta")]
        served(thread, names[-1])
        thread.intake.rollout.ordered = Pin(epoch=1, number=2, made_ms=0)
        served(thread, (1, 2))
        thread.intake.rollout.ordered = None
        served(thread, names[-1])
        assert (thread.intake.counters.num_dropped, [each for each in caplog.messages if "dropped" in each]) == (0, [])
        wire.send(World(num_users=2).records("base", wire.next_offset))  # a version that comes again
        wait_until(lambda: thread.intake.counters.num_dropped == 1, 60, "the repeated version to be dropped")
        assert answers_from(thread, names[-1])


def test_a_pin_to_a_version_to_come_is_waited_for_and_not_passed(wire: Wire) -> None:
    world, rollout = World(num_users=2), Rollout("1/2")
    with subscriber(wire, rollout) as thread:
        publish(wire, world, "base")
        for _ in range(4):
            publish(wire, world)
        served(thread, (1, 2))
        assert rollout.held is None


def test_a_pin_to_what_is_gone_keeps_what_answers_and_says_so(wire: Wire) -> None:
    world = World(num_users=2)
    world.number = 4  # the first versions are gone
    with subscriber(wire) as thread:
        first = publish(wire, world, "base")
        served(thread, first)
        thread.intake.rollout.ordered = Pin(epoch=1, number=1, made_ms=0)
        wait_until(lambda: thread.intake.rollout.held == (1, 1), 60, "the pin to be found missing")
        assert answers_from(thread, first)
        assert "not in the topic" in thread.intake.rollout.why


@pytest.mark.parametrize("gone", ["below the first", "between", "without its base"])
def test_a_server_that_starts_with_a_pin_to_what_is_gone_follows_the_newest_and_says_so(wire: Wire, gone: str) -> None:
    world = World(num_users=2)
    if gone == "without its base":
        world.records("base", 0)
        pin = publish(wire, world)
    else:
        world.number, pin = 4, (1, 1) if gone == "below the first" else (1, 6)
    publish(wire, world, "base")
    if gone == "between":
        world.number = 7
        publish(wire, world, "base")
    first, rollout = publish(wire, world), Rollout()
    rollout.ordered = Pin(epoch=pin[0], number=pin[1], made_ms=0)
    with subscriber(wire, rollout) as thread:
        served(thread, first)
        served(thread, publish(wire, world))
        assert rollout.held == pin
        assert "answering from the newest" in rollout.why
        held = publish(wire, world, "delta", msgspec.structs.replace(GOOD, ne=9.0))
        wait_until(lambda: rollout.held == held, 60, "a ruined version to be held back all the same")
        served(thread, publish(wire, world))
        assert (rollout.held, rollout.num_held) == (pin, 2)
        rollout.ordered = None
        wait_until(lambda: rollout.held is None, 60, "nothing to be held back")


def test_pins_are_read_from_the_topic_and_followed(wire: Wire) -> None:
    rollout = Rollout()
    producer = KafkaProducer(bootstrap_servers=wire.kafka.bootstrap)
    pin = encode_decision(Pin(epoch=3, number=7, made_ms=int(time.time() * 1000), reason="why not"))
    producer.send(wire.topics.control, key=PIN_KEY, value=pin).get(60)
    follower = PinFollower(lambda: connect(wire.kafka, 20), wire.topics.control, rollout)
    follower.start()
    try:
        assert rollout.known.wait(60)
        assert rollout.wanted == (3, 7)
        for value in FOREIGN:
            if value is not None:
                producer.send(wire.topics.control, key=PIN_KEY, value=value)
        producer.send(wire.topics.control, key=PIN_KEY, value=encode_decision(Pin(epoch=3, number=8, made_ms=0))).get(
            60
        )
        wait_until(lambda: rollout.wanted == (3, 8), 60, "a pin after what is none")
        producer.send(wire.topics.control, key=PIN_KEY, value=None).get(60)
        wait_until(lambda: rollout.wanted is None, 60, "the pin to be gone")
    finally:
        follower.stop()
        follower.join(60)
        producer.close(timeout=2)


def test_a_servers_own_pin_goes_before_everybodys() -> None:
    rollout = Rollout("2/5")
    rollout.ordered = Pin(epoch=1, number=1, made_ms=0)
    assert rollout.wanted == (2, 5)
    with pytest.raises(VersionError, match="expected EPOCH/NUMBER, such as 3/17, got '7'"):
        parse_version("7")
