"""A sequences topic that a test fills, a trainer's configuration for it, and a recount of what was published."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from headrace.config import Settings, read_settings
from state.sequencer import Sequencer
from tests.brokers import Broker, wait_until
from tests.process_factory import Child, ProcessFactory
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.journal import journal_starts, read_journal
from trainer.checkpoint.plan import Plan
from trainer.checkpoint.snapshot import learner_arrays
from trainer.device import choose_device
from trainer.learner.step import Learner
from trainer.replay import differences, plan_of, same_bits
from trainer.set_aside import pass_over
from trainer.versions.weights import Weights
from wire.action import Action, decode_record
from wire.action_json import ForgetRequest
from wire.assembler import VersionAssembler
from wire.example import Example, fence
from wire.example_codec import encode_example
from wire.kafka.admin import ensure_topics
from wire.partitioner import partition_of
from wire.topics import Topics, example_key, fence_key
from wire.weights import Claim, Manifest, PlanStep, Version, record_kind

NUM_PARTITIONS = 3
# Small, fast, and with everything that must be repeated bit by bit: sampled negatives, dropout, thinned contexts,
# eviction, features.
SECTIONS: dict[str, dict[str, Any]] = {
    "action": {"kinds": ["see", "click", "like"], "features": ["genre"], "user_features": ["land"]},
    "sequence": {"join_window_s": 20.0, "max_context": 6, "segment_len": 4},
    "model": {
        "num_layers": 1, "model_width": 8, "num_heads": 1, "qk_width": 8, "value_width": 8, "item_width": 8,
        "norm_len": 8.0, "num_positions": 16, "num_time_buckets": 8,
    },
    "trainer": {
        "device": "cpu", "num_threads": 1, "max_step_targets": 12, "max_step_tokens": 200, "step_linger_s": 0.01,
        "file_take": 20, "dropout": 0.1, "full_softmax_max_items": 25, "num_negatives": 16,
        "stochastic_length_alpha": 1.7, "evict_after_days": 0.004, "max_items": 36, "evict_every_steps": 6,
        "metric_window": 50,
        "max_train_context": 5,
        "checkpoint_every_steps": 5, "publish_every_s": 0.05, "base_every": 5, "chunk_bytes": 2000,
        "takeover_after_s": 4.0,
    },
}  # fmt: skip


def actions(seed: int) -> Any:
    """An endless stream of actions on a drifting catalogue; every third one joins an earlier interaction."""
    rng, recent = random.Random(seed), deque[tuple[str, int]]([("u0", 0)], maxlen=8)
    for number in range(1 << 30):
        user, item = f"u{rng.randrange(12)}", number // 40 + rng.randrange(30)
        kinds = ["see", *rng.sample(["click", "like"], rng.randrange(3))]
        if rng.randrange(3) == 0:
            (user, item), kinds = rng.choice(recent), [rng.choice(["click", "like"])]
        recent.append((user, item))
        yield {
            "user": user,
            "item": f"i{item}",
            "action": kinds,
            "timestamp": 1_700_000_000_000 + number * 1000 + rng.randrange(1000),
            "domain": rng.choice(["video", None]),
            "features": {"genre": str(item % 4)},
            "user_features": {"land": rng.choice("abc")},
        }


def toml(sections: dict[str, dict[str, Any]]) -> str:
    """A configuration file."""
    lines: list[str] = []
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    return "\n".join(lines)


def write_config(path: Path, **sections: dict[str, Any]) -> Path:
    """Write `SECTIONS` to a file, with some keys changed."""
    path.write_text(toml({name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in SECTIONS | sections}))
    return path


@dataclass
class Recount:
    """What the weights topic holds: valid versions, and what a reader dropped."""

    num_records: int = 0
    versions: list[Version] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    stale: list[tuple[int, int]] = field(default_factory=list)
    """Manifests after a claim of a higher epoch."""

    @property
    def last(self) -> Manifest:
        return self.versions[-1].manifest


class Stage:
    """One test's topics, filled by the test, and trainers that read them."""

    def __init__(
        self, broker: Broker, prefix: str, folder: Path, factory: ProcessFactory, **sections: dict[str, Any]
    ) -> None:
        self.broker, self.folder, self.factory = broker, folder, factory
        kafka = {"bootstrap": broker.bootstrap, "prefix": prefix, "partitions": NUM_PARTITIONS}
        self.config_path = write_config(folder / "headrace.toml", kafka=kafka, **sections)
        self.settings: Settings = read_settings(self.config_path)
        self.topics = Topics.under(prefix)
        ensure_topics(self.settings.kafka)
        self._producer = self._connect()
        self._consumer = KafkaConsumer(
            bootstrap_servers=broker.bootstrap, enable_auto_commit=False, fetch_max_wait_ms=20
        )
        self._recount = Recount()
        self._assembler = VersionAssembler(on_drop=self._recount.dropped.append)
        self._actions, self._num_made, self._num_fed = actions(seed=7), 0, 0
        self._sequencers = [
            Sequencer(self.settings.action, self.settings.sequence, number) for number in range(NUM_PARTITIONS)
        ]
        self.sent: dict[int, list[Example]] = {number: [] for number in range(NUM_PARTITIONS)}
        self.children: list[Child] = []
        self.decided: dict[int, PlanStep] = {}
        for number in range(NUM_PARTITIONS):
            self.fence(number, 1)

    def _connect(self) -> KafkaProducer:
        return KafkaProducer(bootstrap_servers=self.broker.bootstrap, linger_ms=2, acks="all")

    # As a worker

    def make(self, num_actions: int) -> list[Example]:
        """Examples of the next actions, a millisecond apart, numbered but not sent."""
        for _ in range(num_actions):
            self._num_made += 1
            action = decode_record(msgspec.json.encode(next(self._actions)), 1 << 41, self.settings.action)[0]
            assert isinstance(action, Action), action
            sequencer = self._sequencers[partition_of(action.user.encode(), NUM_PARTITIONS)]
            sequencer.apply(action, sequencer.applied_offset + 1, 1_000 + self._num_made)
        return [example for sequencer in self._sequencers for example in sequencer.drain()]

    def send(self, examples: list[Example], *, counted: bool = True) -> None:
        """Send to the topic; returns when the broker has them."""
        sends = []
        for example in examples:
            slots = self.settings.sequence.num_slots
            segment = example_key(example.address, slots)
            key = fence_key(example.writer_epoch) if example.is_fence else segment
            value = encode_example(example)
            sends.append(self._producer.send(self.topics.sequences, value, key, partition=example.partition))
            if counted and not example.is_fence:
                self.sent[example.partition].append(example)
        for send in sends:
            send.get(60)

    def send_raw(self, topic: str, value: bytes | None, headers: list[tuple[str, bytes | None]] | None = None) -> None:
        """Send a foreign record to partition 0 of one of our topics."""
        self._producer.send(topic, value, b"theirs", headers, partition=0).get(60)

    def fence(self, partition: int, writer_epoch: int) -> None:
        """Write the fence of a worker that takes the partition."""
        self.send([fence(partition, writer_epoch)])
        self._sequencers[partition].writer_epoch = writer_epoch

    def feed(self, num_actions: int) -> None:
        """Send examples of the next actions; now and then a worker is replaced."""
        self.send(self.make(num_actions))
        self._num_fed += 1
        if num_actions >= 20 or self._num_fed % 20 == 0:
            self.replace_worker(self._num_fed % NUM_PARTITIONS)

    def forget(self, num_users: int) -> list[str]:
        """Have so many users of each partition forgotten by one request, as those who have not come for long are."""
        gone = list[str]()
        for sequencer in self._sequencers:
            users = tuple(sequencer.users)[:num_users]
            sequencer.advance(sequencer.applied_offset + 1, 1_000 + self._num_made)
            sequencer.forget(ForgetRequest("", users=users, before_offset=1 << 40), sequencer.applied_record_ms)
            gone += users
        self.send(self.make(0))
        return gone

    def replace_worker(self, partition: int) -> None:
        """Have a successor take the partition and repeat what may be missing, while the old worker still writes."""
        last = self.sent[partition][-2:]
        epoch = self._sequencers[partition].writer_epoch + 1
        self.fence(partition, epoch)
        self.send([replace(example, writer_epoch=epoch) for example in last], counted=False)
        self.send([replace(example, number=example.number + 1) for example in last[-1:]], counted=False)

    @property
    def covered(self) -> dict[int, int]:
        """Partition → highest number sent."""
        return {number: len(examples) - 1 for number, examples in self.sent.items()}

    def replace_topic(self) -> None:
        """Delete the sequences topic and create it again, as after the worker's disk was wiped: numbers start over."""
        with admin_of(self.broker) as admin:
            admin.delete_topics([self.topics.sequences])
            wait_until(lambda: self.topics.sequences not in admin.list_topics(), 60, "the topic to be gone")
        ensure_topics(self.settings.kafka)
        self._sequencers = [
            Sequencer(self.settings.action, self.settings.sequence, number) for number in range(NUM_PARTITIONS)
        ]
        self.sent = {number: [] for number in range(NUM_PARTITIONS)}
        for number in range(NUM_PARTITIONS):
            self.fence(number, 1)

    def number_anew(self, num_sent: Mapping[int, int]) -> None:
        """Number and send on as a worker that was restored from this many examples of each partition."""
        for number, num in num_sent.items():
            del self.sent[number][num:]
            self._sequencers[number]._emitter.next_number = num
        self._producer.close(timeout=2)
        self._producer = self._connect()

    def forget_records(self, share: float) -> None:
        """Delete this share of the sequences topic's records, as retention would."""
        partitions = [TopicPartition(self.topics.sequences, number) for number in range(NUM_PARTITIONS)]
        ends = self._consumer.end_offsets(partitions)
        with admin_of(self.broker) as admin:
            for policy in ("delete", "compact"):  # records can only be deleted under the first policy
                changed = ConfigResource(ConfigResourceType.TOPIC, self.topics.sequences, {"cleanup.policy": policy})
                admin.alter_configs([changed])
                if policy == "delete":
                    admin.delete_records({each: int(end * share) for each, end in ends.items()})

    # Trainers

    def start(
        self, name: str = "a", broken: tuple[str, ...] = (), point: str = "", *options: str,
        environment: Mapping[str, str] | None = None,
    ) -> Child:  # fmt: skip
        """Start a trainer with a checkpoint folder of this name."""
        arguments = ["--config", str(self.config_path), "--checkpoint-dir", str(self.checkpoints(name)), *options]
        self.children.append(self.factory.start(arguments, broken, point, environment))
        return self.children[-1]

    def checkpoints(self, name: str = "a") -> Path:
        return self.folder / f"checkpoints-{name}"

    def note_journal(self, name: str = "a") -> None:
        """Note what was decided so far, between two runs: it must still hold after the next."""
        folder = self.checkpoints(name)
        for start in journal_starts(folder) if folder.exists() else []:
            for step, decided in enumerate(read_journal(folder, start).steps, start):
                before = self.decided.setdefault(step, decided)
                assert before == decided, f"step {step} was recorded as {before}, and again as {decided}"

    def close(self) -> None:
        for child in self.children:
            child.kill()
        self._producer.close(timeout=2)
        self._consumer.close()

    # Checks

    def recount(self) -> Recount:
        """The weights topic so far, as a reader takes it."""
        recount = self._recount
        for record in self._read_on():
            recount.num_records += 1
            kind = record_kind(record.headers)
            # Foreign records may claim to be either.
            with suppress(msgspec.MsgspecError, TypeError, ValueError, AttributeError, RecursionError):
                if kind == "claim":
                    recount.claims.append(msgspec.json.decode(record.value, type=Claim))
                elif kind == "manifest":
                    epoch, number = (int(part) for part in record.key.split(b"/"))
                    if epoch < self._assembler.epoch_floor:
                        recount.stale.append((epoch, number))
            version = self._assembler.feed(record.key, record.headers, record.value)
            if version is not None:
                recount.versions.append(version)
        return recount

    def _read_on(self) -> list[Any]:
        where = TopicPartition(self.topics.weights, 0)
        if not self._consumer.assignment():
            self._consumer.assign([where])
            self._consumer.seek_to_beginning(where)
        end = self._consumer.end_offsets([where])[where]
        found: list[Any] = []
        while self._consumer.position(where) < end:
            found += [record for records in self._consumer.poll(100).values() for record in records]
        return found

    def wait_published(self, timeout_s: float = 60) -> None:
        """Wait until a version covers everything sent, or no trainer is left to publish one."""

        def covers() -> bool:
            ended = self.children[-1].status
            assert ended is None, f"the trainer ended with {ended}:\n{self.children[-1].log()[-3000:]}"
            versions = self.recount().versions
            covered = versions[-1].manifest.covered if versions else {}
            beyond = [number for number, last in covered.items() if last > self.covered[number]]
            assert not beyond, (
                f"not each once: partitions {beyond} are covered up to {covered}, sent were {self.covered}"
            )
            return covered == self.covered

        try:
            wait_until(covers, timeout_s, f"a version that covers {self.covered}", every_s=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.children[-1].log()[-3000:]}") from None

    def live_and_die(self, point: str, broken: tuple[str, ...] = (), name: str = "a") -> None:
        """Run a trainer that ends at a point, while the stream goes on."""
        self.feed(40)
        child = self.start(name, broken, point)
        self.feed_until(lambda: child.status is not None, f"{point} is reached")
        assert child.status == -9, f"{point}: ended with {child.status}:\n{child.log()[-3000:]}"
        self.note_journal(name)

    def feed_until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = 60, every_s: float = 0.04
    ) -> None:
        """Keep sending until the condition holds; seldom (``every_s``) where time itself is what is waited for."""

        def holds() -> bool:
            if not condition():
                self.feed(3)
                return condition()
            return True

        wait_until(holds, timeout_s, what, every_s=every_s)

    def finish(self, name: str = "a", timeout_s: float = 60, *, is_divided: bool = False) -> Recount:
        """Wait for the last version, stop the trainer, and check every promise. ``is_divided``: its tables were."""
        self.feed(3)  # which only the trainer that runs now can publish, after it has recovered
        self.wait_published(timeout_s)
        child = self.children[-1]
        assert child.stop() == 0, child.log()[-3000:]
        self.note_journal(name)
        recount = self.recount()
        but = (*NOT_LEARNED, *RANKED_SO_FAR) if is_divided else NOT_LEARNED
        self.check_checkpoint(self.check(recount), name, but)
        return recount

    def check(self, recount: Recount) -> Learner:
        """Check that every number was trained once, and every version equals an uninterrupted run of the plan."""
        assert recount.last.covered == self.covered
        ours = [each for each in recount.versions if each.manifest.lineage == recount.last.lineage]
        plan = plan_of(weights_of(ours), [each.manifest for each in ours])
        for each in ours:
            first, last = each.manifest.first_step, each.manifest.next_step
            told = [[tuple(part) for part in step] for step in each.manifest.plan]
            assert told == plan.steps[first:last], f"{_name(each)}: published steps were decided again"
        self._check_once(plan.steps)
        learner = self._uninterrupted(plan, ours)
        num_new = sum(example.num_new for examples in self.sent.values() for example in examples)
        num_feedback = sum(example.num_feedback for examples in self.sent.values() for example in examples)
        set_aside = [each for number in plan.set_aside for each in self.examples_of(plan.steps[number])]
        num_new -= sum(example.num_new for example in set_aside)
        num_feedback -= sum(example.num_feedback for example in set_aside)
        assert recount.last.num_interactions == learner.num_interactions == num_new
        assert recount.last.num_feedback == learner.num_feedback == num_feedback
        assert recount.last.metrics["num_targets"] == num_new, "predicted and counted once"
        return learner

    def _check_once(self, steps: list[PlanStep]) -> None:
        trained: dict[int, list[int]] = {number: [] for number in range(NUM_PARTITIONS)}
        for partition, first, last in (part for step in steps for part in step):
            trained[partition] += range(first, last + 1)
        for partition, numbers in trained.items():
            assert numbers == list(range(len(self.sent[partition]))), f"partition {partition}: not each once, in order"

    def examples_of(self, step: PlanStep) -> list[Example]:
        """The examples of a step."""
        return [self.sent[part[0]][place] for part in step for place in range(part[1], part[2] + 1)]

    def _uninterrupted(self, plan: Plan, versions: list[Version]) -> Learner:
        """A learner that follows the plan without interruption, compared with every version on the way."""
        learner = Learner(self.settings.model, self.settings.trainer, choose_device(self.settings.trainer))
        published: Weights | None = None
        waiting = list(versions)
        for number, step in enumerate(plan.steps, 1):
            if number - 1 in plan.set_aside:
                pass_over(learner, self.examples_of(step))
            else:
                learner.step(self.examples_of(step))
            while waiting and waiting[0].manifest.next_step == number:
                version = waiting.pop(0)
                published = _take(published, version)
                assert _is_finite(version), f"{_name(version)} is not finite"
                wrong = differences(published, learner)
                assert not wrong, f"{_name(version)} is not the plan's weights: {wrong}"
        assert not waiting
        return learner

    def check_checkpoint(self, learner: Learner, name: str, but: tuple[str, ...]) -> None:
        """Check that the newest checkpoint is bit-equal to the uninterrupted learner, with optimiser and metrics."""
        folder = CheckpointFolder(self.checkpoints(name), on_damage=lambda what: None).open()
        checkpoint = folder.load()
        folder.close()
        assert checkpoint is not None
        wrong = unequal(checkpoint.arrays, learner_arrays(learner), but)
        assert not wrong, f"the checkpoint differs from the uninterrupted learner: {wrong}"


NOT_KEPT = ("names.unpublished", ".dirty", "dirty_V", ".moved", "pair_dirty", "pair_moved")
"""Arrays that a checkpoint has no use for: whoever goes on from it publishes everything first."""
NOT_LEARNED = (*NOT_KEPT, ".tombstones")
"""Arrays that depend on when versions were published."""
RANKED_SO_FAR = tuple(
    f"ranking.{name}"
    for name in ("score_V", "lift_V", "logit_V", "number", "listed_row", "listed_score", "listed_feature")
)
"""Where tables are divided, other rows are scored early than where they are whole, and logits are known from the start.
It makes no difference to what comes of it, which the metrics show."""


def unequal(ours: dict[str, Any], theirs: dict[str, Any], but: tuple[str, ...] = NOT_LEARNED) -> list[str]:
    """Names of arrays that are not bit-equal."""
    assert ours.keys() == theirs.keys(), f"in one of them alone: {sorted(ours.keys() ^ theirs.keys())}"
    return [
        name for name, array in ours.items()
        if not name.endswith(but)
        and not same_bits(array, np.ascontiguousarray(theirs[name]))
    ]  # fmt: skip


def _take(weights: Weights | None, version: Version) -> Weights:
    if weights is None or version.manifest.kind == "base":
        return Weights.from_base(version)
    return weights.apply(version)


def weights_of(versions: list[Version]) -> Weights:
    """The weights of a reader that has applied all of these."""
    weights: Weights | None = None
    for version in versions:
        weights = _take(weights, version)
    assert weights is not None
    return weights


@contextmanager
def admin_of(broker: Broker) -> Iterator[KafkaAdminClient]:
    """An admin client."""
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        yield admin
    finally:
        admin.close()


def _is_finite(version: Version) -> bool:
    arrays = [*version.snapshot.dense.values(), *(table.rows for table in version.snapshot.tables.values())]
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _name(version: Version) -> str:
    return f"version {version.manifest.epoch}/{version.manifest.number} ({version.manifest.kind})"
