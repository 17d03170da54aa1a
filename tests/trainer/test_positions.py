"""A position is resumed only where it fits: in the same topic, which still has the next record."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from kafka import TopicPartition

from headrace.audit import audit
from tests.brokers import wait_until
from tests.foreign import FOREIGN
from tests.process_factory import Child
from tests.trainer.stage import NUM_PARTITIONS, Stage, admin_of, weights_of
from trainer.checkpoint.snapshot import restore_published
from trainer.device import choose_device
from trainer.learner.step import Learner
from trainer.replay import differences
from trainer.versions.log import read_manifests
from trainer.versions.weights import Weights
from wire.example import fence
from wire.example_codec import LAYOUT, MAGIC, encode_example
from wire.json_value import MAX_EPOCH
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect
from wire.shape import SHAPE, encode_shape, shape_of
from wire.status import ServerStatus, encode_status
from wire.thinned_log import NUM_LOGGED

Make = Callable[..., Stage]
FROM_PUBLISHED = ((), "", "--from-published")
RECREATED, REMEDY = "it was deleted and created again", "start with --from-published"


def train_and_end(made: Stage) -> None:
    made.feed(90)
    child = made.start()
    made.feed(20)
    made.wait_published()
    assert child.stop() == 0


def ends_with_one_line(child: Child) -> str:
    assert child.wait() == 1, child.log()
    last = child.log().splitlines()[-1]
    assert last.startswith("headrace train: ")
    assert "Traceback" not in child.log()
    return last


def test_a_topic_that_was_created_again_is_one_line_that_names_topic_position_and_remedy(stage: Make) -> None:
    made = stage()
    train_and_end(made)
    made.replace_topic()
    made.feed(20)
    for _ in range(2):
        last = ends_with_one_line(made.start())
        assert "sequences topic: expected the one with id" in last
        assert RECREATED in last
        assert "partition 0: example " in last
        assert REMEDY in last


def test_the_audit_says_when_weights_were_learned_from_another_topic(stage: Make) -> None:
    made = stage()
    train_and_end(made)
    another = "learned from the sequences topic with id"

    def found() -> list[str]:
        return [each for check in audit(made.settings).checks for each in check.violations if another in each]

    assert found() == []
    made.replace_topic()
    assert len(found()) == 1


def test_a_topic_that_is_created_again_under_a_running_trainer_ends_it_with_one_line(stage: Make) -> None:
    made = stage()
    made.feed(60)
    child = made.start()
    made.wait_published()
    made.replace_topic()
    made.feed(20)
    last = ends_with_one_line(child)
    assert f"{made.topics.sequences}: expected the topic with id" in last
    assert RECREATED in last
    assert REMEDY in last


def test_what_was_learned_can_be_kept_when_the_topic_was_created_again(stage: Make) -> None:
    made = stage()
    train_and_end(made)
    before = made.recount().last
    made.replace_topic()
    made.feed(40)
    child = made.start("b", *FROM_PUBLISHED)
    made.feed_until(lambda: made.recount().last.lineage != before.lineage, "a new line of training")
    made.wait_published()
    assert "starting from the last published version, and from the beginning of the sequences topic" in child.log()
    recount = made.recount()
    num_new = sum(example.num_new for examples in made.sent.values() for example in examples)
    assert recount.last.num_interactions == before.num_interactions + num_new
    assert child.stop() == 0


def test_a_fresh_trainer_does_not_follow_the_steps_of_another_topic(stage: Make) -> None:
    made = stage()
    train_and_end(made)
    made.replace_topic()
    made.feed(40)
    lineage = made.recount().last.lineage
    child = made.start("b")
    made.feed_until(lambda: made.recount().last.lineage != lineage, "a new line of training")
    recount = made.finish("b")
    assert "a new line of training begins" in child.log()
    assert len({each.manifest.lineage for each in recount.versions}) == 2


def test_a_position_behind_the_end_of_its_topic_is_one_line_too(stage: Make) -> None:
    made = stage()
    made.feed(10)
    made.start(broken=("knows_no_topic_ids",))
    made.feed(60)
    made.wait_published()
    assert made.children[-1].stop() == 0
    made.replace_topic()
    last = ends_with_one_line(made.start(broken=("knows_no_topic_ids",)))
    assert f"{made.topics.sequences} partition 0: expected it to reach offset" in last
    assert "where the checkpoint resumes (example " in last
    assert REMEDY in last


def test_a_trainer_that_trusts_any_topic_is_caught(stage: Make) -> None:
    made = stage()
    made.start(broken=("trusts_any_topic",))
    made.feed(90)
    made.wait_published()
    assert made.children[-1].stop() == 0
    made.replace_topic()
    made.feed(20)
    made.start(broken=("trusts_any_topic",))
    with pytest.raises(AssertionError, match=r"not each once|in vain"):
        made.wait_published(10)


def test_records_that_were_removed_unread_end_a_trainer_before_the_next_one_arrives(stage: Make) -> None:
    made = stage()
    train_and_end(made)
    made.feed(20)
    made.forget_records(1.0)
    line = ends_with_one_line(made.start())
    assert f"topic {made.topics.sequences}: expected what compaction leaves, but partition 0 begins at " in line
    assert 'set trainer.on_gap = "skip"' in line


def test_histories_whose_records_were_removed_are_told(stage: Make) -> None:
    """All of them had been read: no gap will ever show it."""
    made = stage()
    train_and_end(made)
    made.forget_records(1.0)
    child = made.start(environment={"HEADRACE_TRAINER__ON_GAP": "skip"})
    child.wait_for("users' histories are not complete")
    made.feed(10)
    made.wait_published()
    assert child.stop() == 0


# Without a checkpoint


def lose_the_checkpoint(made: Stage, share: float) -> Weights:
    """Have a trainer publish and end, then lose its disk and the topic's first records."""
    train_and_end(made)
    shutil.rmtree(made.checkpoints())
    made.decided.clear()
    made.forget_records(share)
    return weights_of(made.recount().versions)


def test_without_checkpoint_and_first_records_it_says_how_to_start(stage: Make) -> None:
    made = stage()
    lose_the_checkpoint(made, 0.5)
    assert f"without a checkpoint, {REMEDY}" in ends_with_one_line(made.start())


def test_a_trainer_starts_from_the_last_published_version_bit_for_bit(stage: Make) -> None:
    made = stage()
    weights = lose_the_checkpoint(made, 0.0)
    first = made.recount().last
    child = made.start("a", *FROM_PUBLISHED)
    made.feed(4)  # while most users, whose histories are read from the topic, are quiet
    made.wait_published()
    assert child.stop() == 0
    made.start("a", *FROM_PUBLISHED)
    made.feed(40)
    made.wait_published()
    recount = made.recount()
    assert "starting from the last published version" in child.log()
    assert "resuming from the checkpoint" in made.children[-1].log(), "the option does no harm later"
    assert made.children[-1].stop() == 0

    ours = [each for each in recount.versions if each.manifest.lineage == recount.last.lineage]
    assert {each.manifest.parent for each in ours} == {first.lineage}
    assert ours[0].manifest.first_step == first.next_step, "steps are counted on"
    learner = Learner(made.settings.model, made.settings.trainer, choose_device(made.settings.trainer))
    restore_published(learner, weights)
    assert differences(weights, learner) == []
    assert learner.memory.num_rows == learner.items.num_rows
    for number, examples in made.sent.items():
        for example in examples[: first.covered[number] + 1]:
            learner.histories.restore(example)
    for version in made.recount().versions[-1:]:
        plan = {
            each.manifest.first_step + index: step for each in ours for index, step in enumerate(each.manifest.plan)
        }
        for number in range(first.next_step, version.manifest.next_step):
            learner.step(made.examples_of(plan[number]))
        assert differences(weights_of(ours), learner) == []


def test_without_any_version_there_is_nothing_to_start_from(stage: Make) -> None:
    made = stage()
    last = ends_with_one_line(made.start("a", *FROM_PUBLISHED))
    assert "--from-published: expected a version in the weights topic, got none" in last


def test_other_settings_than_the_published_ones_are_refused(stage: Make) -> None:
    made = stage()
    lose_the_checkpoint(made, 0.0)
    made.config_path.write_text(made.config_path.read_text().replace("model_width = 8", "model_width = 16"))
    last = ends_with_one_line(made.start("a", *FROM_PUBLISHED))
    assert "model.model_width: the published weights were trained with 8, the configuration now says 16" in last


def test_partitions_that_are_added_under_a_trainer_end_it_with_one_line(stage: Make) -> None:
    made = stage()
    made.feed(60)
    child = made.start()
    made.wait_published()
    with admin_of(made.broker) as admin:
        admin.create_partitions({made.topics.sequences: NUM_PARTITIONS + 2})
    counts = f"expected {NUM_PARTITIONS} partitions, the broker has {NUM_PARTITIONS + 2}"
    expected = f"topic {made.topics.sequences}: {counts}"
    assert expected in ends_with_one_line(child)
    assert expected in ends_with_one_line(made.start())
    made.feed(20)
    child = made.start("a", (), "", "--despite-added-partitions")
    made.wait_published()
    assert child.stop() == 0


def test_a_topic_that_is_deleted_under_a_trainer_ends_it_with_one_line(stage: Make) -> None:
    made = stage()
    made.feed(60)
    child = made.start()
    made.wait_published()
    with admin_of(made.broker) as admin:
        admin.delete_topics([made.topics.sequences])
    last = ends_with_one_line(child)
    assert f"topic {made.topics.sequences}: expected it to exist still, but it is gone. Position: partition 0: " in last
    assert REMEDY in last


def test_a_weights_topic_that_is_another_one_ends_a_trainer_and_the_next_begins_with_a_base(stage: Make) -> None:
    made = stage()
    made.feed(60)
    child = made.start()
    made.wait_published()
    with admin_of(made.broker) as admin:
        admin.delete_topics([made.topics.weights])
        wait_until(lambda: made.topics.weights not in admin.list_topics(), 60, "the topic to be gone")
    ensure_topics(made.settings.kafka)
    last = ends_with_one_line(child)
    assert f"topic {made.topics.weights}: expected the one with id " in last
    assert "which epoch 0 of this trainer refers to" in last
    made.start()
    made.feed(20)
    where = TopicPartition(made.topics.weights, 0)
    with closing(connect(made.settings.kafka)) as reader:

        def has_base() -> bool:
            return any(each.kind == "base" for each in read_manifests(reader, where, lambda _: False)[0])

        wait_until(has_base, 60, "a base in the new topic")


def test_foreign_records_in_the_topics_are_skipped_and_named(stage: Make) -> None:
    made = stage()
    made.feed(60)
    damaged = MAGIC + bytes([LAYOUT]) + bytes(47)
    for topic in (made.topics.sequences, made.topics.weights, made.topics.status, made.topics.lag):
        for value in (*FOREIGN, damaged):
            made.send_raw(topic, value)
    child = made.start()
    made.feed(60)
    made.wait_published()
    for value in FOREIGN:
        made.send_raw(made.topics.status, value)
        for kind in (b"claim", b"manifest", b"chunk", b"other", None):
            made.send_raw(made.topics.weights, value, [("record", kind)] if kind else [])
    made.feed(20)
    made.wait_published()
    child.kill()
    made.start()
    made.feed(20)
    made.finish()
    told = [line for line in child.log().splitlines() if "skipped a foreign record" in line]
    assert len(told) == NUM_LOGGED
    assert "Traceback" not in child.log()
    assert all(made.topics.sequences in line for line in told)


def test_an_epoch_above_which_there_is_none_is_one_line(stage: Make) -> None:
    made = stage()
    made.feed(20)
    last = ServerStatus(component="server", time_ms=0, epoch=MAX_EPOCH, number=0)
    made.send_raw(made.topics.status, encode_status(last))
    line = ends_with_one_line(made.start())
    assert f"expected an epoch below {MAX_EPOCH}" in line
    assert "start over under another kafka.prefix" in line


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kinds": ("click", "see", "like")}, "action.kinds: expected ('see', 'click', 'like'), got examples of a"),
        ({"features": ()}, "action.features: expected ('genre',), got examples of a worker with ()"),
        ({"segment_len": 5}, "sequence.segment_len: expected "),
        ({"max_context": 999}, "sequence.max_context (in segments): expected "),
        ({"num_partitions": 7}, "kafka.partitions (which only headrace repartition changes): expected "),
        ({"kinds": ("see", "click", "like", "buy")}, ""),
        ({"max_future_s": 5.0, "join_window_s": 1.5}, ""),
    ],
    ids=[
        "other kinds",
        "other features",
        "other segments",
        "another context",
        "other partitions",
        "a kind appended",
        "other rules",
    ],
)
def test_a_worker_of_another_configuration_is_one_line_and_no_mix_up(
    changed: dict[str, Any], words: str, stage: Make
) -> None:
    made = stage()
    made.feed(30)
    action, sequence = made.settings.action, made.settings.sequence
    of_action = {name: value for name, value in changed.items() if hasattr(action, name)}
    of_sequence = {name: value for name, value in changed.items() if hasattr(sequence, name)}
    num_partitions = changed.get("num_partitions", made.settings.kafka.partitions)
    said = encode_shape(shape_of(replace(action, **of_action), replace(sequence, **of_sequence), num_partitions))
    made.send_raw(made.topics.sequences, encode_example(fence(0, 1)), [(SHAPE, said)])
    child = made.start()
    if words:
        assert words in ends_with_one_line(child)
    else:
        made.wait_published()
        assert child.stop() == 0


def test_a_topic_that_lost_its_claims_goes_on_above_the_epoch_that_servers_answer_from(stage: Make) -> None:
    """Retention takes claims too, while no trainer runs; servers drop what begins at epoch 0 again as fenced off."""
    made = stage()
    made.feed(20)
    made.start()
    before = made.finish().last
    where = TopicPartition(made.topics.weights, 0)
    with admin_of(made.broker) as admin:
        admin.delete_records({where: -1})  # all of them
    served = ServerStatus(component="server", time_ms=0, epoch=before.epoch, number=before.number)
    made.send_raw(made.topics.status, encode_status(served))
    made.feed(3)
    made.start()
    assert made.finish().last.epoch == before.epoch + 1


@pytest.mark.parametrize(("max_train_context", "warns"), [(0, False), (2, True)])
def test_a_trainer_that_is_to_thin_contexts_says_when_none_is_long_enough(
    stage: Make, max_train_context: int, *, warns: bool
) -> None:
    made = stage(trainer={"stochastic_length_alpha": 1.7, "max_train_context": max_train_context})
    child = made.start()
    wait_until(lambda: '"training"' in child.log(), 60, "a trainer that has begun")
    assert ("trainer.stochastic_length_alpha thins nothing" in child.log()) is warns
