"""Where a trainer resumes: at the checkpoint, then the steps recorded after it in the journal and published versions.

However often a trainer is interrupted, even while it repeats recorded steps, the plan always begins at the checkpoint's
own step, so no step between that one and the last one published is forgotten.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.journal import read_journal
from trainer.checkpoint.plan import Plan, parse_steps
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.recorded import difference
from trainer.checkpoint.snapshot import restore_learner, restore_published
from trainer.errors import CheckpointError, JournalError
from trainer.learner.step import Learner
from trainer.sources.positions import REMEDY
from trainer.sources.source import Position
from trainer.versions.election import Claimant
from trainer.versions.publisher import Publisher
from trainer.versions.weights import Weights
from wire.weights import TOPIC_ID, Manifest, PlanStep

log = structlog.get_logger("trainer")


@dataclass(slots=True)
class Resumed:
    """Where training resumes. ``plan``: recorded steps from the learner's next one, or the first unpublished one."""

    lineage: str
    plan: Plan
    unpublished_first: int = 0
    """Number of the first step that no acknowledged version contains."""
    positions: dict[int, Position] = field(default_factory=dict)
    parent: str = ""
    """The lineage that this one began from, if any."""
    num_set_aside: int = 0
    """Interactions in steps that were set aside, so far."""
    is_fresh: bool = False
    """No checkpoint was found."""

    def planned(self, learner: Learner) -> list[PlanStep]:
        """Recorded steps that must still be repeated."""
        return self.plan.after(learner.num_steps)

    def unpublished(self, learner: Learner) -> list[PlanStep]:
        """Steps that the learner has learned and no acknowledged version contains."""
        done = max(0, learner.num_steps - self.unpublished_first)
        return self.plan.after(self.unpublished_first)[:done]


class Recovery:
    """Reads what earlier processes left. ``identity``: what the source's examples depend on; compared on resuming."""

    def __init__(self, folder: CheckpointFolder | None, identity: dict[str, Any]) -> None:
        self._folder, self._identity = folder, identity

    def from_disk(self, learner: Learner) -> Resumed:
        """Restore the newest checkpoint into a new learner, and read the journal after it."""
        checkpoint = self._folder.load() if self._folder is not None else None
        if checkpoint is None:
            return Resumed(lineage=uuid.uuid4().hex, plan=Plan(0), is_fresh=True)
        assert self._folder is not None
        check_identity(self._identity, checkpoint)
        restore_learner(learner, checkpoint)
        meta = checkpoint.meta
        # A checkpoint written while recorded steps were being repeated is older than the last published version.
        plan = Plan(min(checkpoint.step, meta["unpublished_first"]))
        plan.merge(meta["unpublished_first"], parse_steps(meta["unpublished"]), set_aside=meta.get("set_aside", ()))
        recorded = read_journal(self._folder.path, checkpoint.step)
        plan.merge(checkpoint.step, recorded.steps, set_aside=recorded.set_aside)
        log.info(
            "checkpoint loaded", step=checkpoint.step, interactions=learner.num_interactions, lineage=meta["lineage"]
        )
        positions = msgspec.convert(meta["positions"], dict[int, Position], strict=False)
        return Resumed(
            meta["lineage"],
            plan,
            meta["unpublished_first"],
            positions,
            parent=meta.get("parent", ""),
            num_set_aside=meta.get("num_set_aside_interactions", 0),
        )

    def with_published(
        self,
        resumed: Resumed,
        learner: Learner,
        publisher: Publisher,
        claimant: Claimant,
        stop: threading.Event,
        *,
        take_over: bool = False,
        from_published: bool = False,
        on_standby: Callable[[], None] = lambda: None,
    ) -> None:
        """Become the leader, and add the steps in earlier versions of this line of training.

        ``from_published``: without a checkpoint, start a new line of training from the newest version's weights and
        positions. Raises `CheckpointError` if no version that fits is published.
        """
        published = _Published(learner, resumed, self._identity)
        starts_anew = from_published and resumed.is_fresh
        if from_published and not starts_anew:
            log.warning("resuming from the checkpoint: --from-published is for a checkpoint_dir without one")
        enough = bool if starts_anew else published.is_enough
        manifests = publisher.lead(claimant, enough, stop, at_once=take_over, on_standby=on_standby)
        if not starts_anew:
            published.merge(manifests)
        else:
            published.start_from(publisher.newest_weights(manifests))


class _Published:
    """Merges the published steps of one line of training into those found on disk."""

    def __init__(self, learner: Learner, resumed: Resumed, source: dict[str, Any]) -> None:
        self._learner, self._resumed, self._source = learner, resumed, source

    def is_enough(self, found: list[Manifest]) -> bool:
        """Whether these manifests reach back to the first step needed, or none of them is of use."""
        resumed = self._resumed
        if found and resumed.is_fresh and not self._is_ours(found[-1]):
            return True
        lineage = found[-1].lineage if resumed.is_fresh and found else resumed.lineage
        return any(each.lineage == lineage and each.first_step <= resumed.plan.first_step for each in found)

    def merge(self, manifests: list[Manifest]) -> None:
        """Follow the checkpoint's line of training, or without a checkpoint the newest one."""
        resumed, num_steps = self._resumed, self._learner.num_steps
        if resumed.is_fresh and manifests and self._is_ours(manifests[-1]):
            lineage = manifests[-1].lineage
            if any(each.lineage == lineage and each.first_step == 0 for each in manifests):
                resumed.lineage = lineage
                log.warning("no checkpoint: following the published steps from the first one", lineage=lineage)
        ours = [manifest for manifest in manifests if manifest.lineage == resumed.lineage]
        if not ours and manifests:
            log.warning("a new line of training begins", lineage=resumed.lineage, before=manifests[-1].lineage)
        for each in ours:
            resumed.plan.merge(each.first_step, each.plan, set_aside=each.set_aside, fixed_below=num_steps)
        if ours:
            resumed.unpublished_first = max(resumed.unpublished_first, ours[-1].next_step)
        if resumed.plan.next_step < resumed.unpublished_first:
            raise JournalError(
                f"plan: steps {resumed.plan.next_step} to {resumed.unpublished_first - 1} are published, but no longer "
                "recorded anywhere. Start from the last published version with --from-published"
            )

    def start_from(self, weights: Weights | None) -> None:
        """Take over the newest version, with its positions but without optimisers' state and statistics."""
        if weights is None:
            raise CheckpointError(
                "--from-published: expected a version in the weights topic, got none; start without it, to train from "
                "the first example that the topic has"
            )
        manifest, resumed, learner = weights.manifest, self._resumed, self._learner
        check_settings(learner, manifest)
        restore_published(learner, weights)
        resumed.plan, resumed.unpublished_first = Plan(manifest.next_step), manifest.next_step
        resumed.parent = manifest.lineage
        name = f"{manifest.epoch}/{manifest.number}"
        if is_same_source(manifest.source, self._source):
            resumed.positions = msgspec.convert(manifest.positions, dict[int, Position], strict=False)
            log.warning(
                "starting from the last published version; optimisers and statistics start from scratch",
                version=name, step=manifest.next_step, interactions=manifest.num_interactions,
                next_examples={partition: each.next_number for partition, each in resumed.positions.items()},
            )  # fmt: skip
        else:
            log.warning(
                "starting from the last published version, and from the beginning of the sequences topic: it is not "
                "the topic that the version has learned from",
                version=name, step=manifest.next_step, learned_from=manifest.source, now=self._source,
            )  # fmt: skip

    def _is_ours(self, manifest: Manifest) -> bool:
        learner = self._learner
        return (
            is_same_source(manifest.source, self._source)
            and difference(learner.model_config, learner.config, manifest.model_config, manifest.learning) is None
            and manifest.model_id == learner.config.model_id
        )


def check_settings(learner: Learner, manifest: Manifest) -> None:
    """Raise `CheckpointError` if a version was trained with settings that differ from the configured ones."""
    found = difference(learner.model_config, learner.config, manifest.model_config, manifest.learning)
    if found is not None:
        name, theirs, ours = found
        raise CheckpointError(
            f"{name}: the published weights were trained with {theirs!r}, the configuration now says {ours!r}; restore "
            "it, or start without --from-published to train from scratch"
        )


def is_same_source(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether example numbers mean the same in both; a key that one of them lacks is not compared."""
    return all(ours[key] == value for key, value in theirs.items() if key in ours)


def check_identity(ours: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` if the source is not the one that the checkpoint's positions refer to."""
    for key, recorded in checkpoint.meta.get("source", {}).items():
        if key in ours and ours[key] != recorded and key == TOPIC_ID:
            places = "; ".join(
                f"partition {partition}: example {each['next_number']} at offset {each['next_offset']}"
                for partition, each in sorted(checkpoint.meta["positions"].items())
            )
            raise CheckpointError(
                f"sequences topic: expected the one with id {recorded}, which the checkpoint's position refers to, got "
                f"one with id {ours[key]}: it was deleted and created again. Position: {places}. {REMEDY}"
            )
        if key in ours and ours[key] != recorded:
            raise CheckpointError(
                f"{key}: the checkpoint's position belongs to {recorded!r}, now it is {ours[key]!r}, where the numbers "
                "stand for other examples. Restore it, or name an empty trainer.checkpoint_dir to train from scratch"
            )
