"""Lines of training beside each other on the same topics: which one servers follow, and whether another is as good."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from headrace.config import Settings
from headrace.versions import manifests
from serving.versions.rollout import PinFollower, Rollout
from wire.control import LINE_KEY, decode_switch
from wire.errors import TopicMissing, VersionError
from wire.kafka.consumer import connect, read, reconnect, spans
from wire.topics import Topics
from wire.weights import Manifest, Quality

LOOK_EVERY_S = 2.0
CONTROL_S = 10.0
"""How long to wait for the control topic to be read."""
CAUGHT_UP_MS = 60_000
"""A line whose newest learned action is older by more than this is still catching up, so it was measured on other
actions."""


def on_line(settings: Settings, line: str) -> Settings:
    """The configuration, for another line of training."""
    return settings.model_copy(update={"kafka": dataclasses.replace(settings.kafka, line=line)})


def followed_line(settings: Settings) -> str:
    """The line that servers follow: the last one in the control topic, or the configured one if there is none."""
    topic, line = Topics.under(settings.kafka.prefix).control, settings.kafka.line
    consumer = connect(settings.kafka)
    try:
        for record in read(consumer, topic, spans(consumer, topic)):
            if record.key == LINE_KEY:
                try:
                    line = decode_switch(record.value).line if record.value else settings.kafka.line
                except VersionError:
                    continue
    except TopicMissing:
        return line
    finally:
        consumer.close()
    return line


@contextlib.contextmanager
def followed(settings: Settings, line: str | None) -> Iterator[Callable[[], str]]:
    """A function that returns the line to show: ``line``, or if that is None, the one that servers follow at the
    moment."""
    if line is not None:
        yield lambda: line
        return
    rollout = Rollout(own_line=settings.kafka.line)
    follower = PinFollower(lambda: reconnect(settings.kafka), Topics.under(settings.kafka.prefix).control, rollout)
    follower.start()
    rollout.known.wait(CONTROL_S)
    try:
        yield lambda: rollout.line
    finally:
        follower.stop()
        follower.join(CONTROL_S)


def wait_until_as_good(old: Settings, new: Settings, worse: float) -> None:
    """Return once the newest version of ``new`` is as good as the newest of ``old``. Prints what is missing, whenever
    that changes."""
    told = ""
    while missing := _missing(manifests(old, bool), manifests(new, bool), old.serving.guard_min_targets, worse):
        if missing != told:
            Console().print(f"not yet: {missing}", highlight=False)
        told = missing
        time.sleep(LOOK_EVERY_S)


def _missing(old: list[Manifest], new: list[Manifest], min_targets: int, worse: float) -> str:
    if not old:
        return ""
    return what_is_missing(old[-1], new[-1], min_targets, worse) if new else "it has no version"


def what_is_missing(old: Manifest, new: Manifest, min_targets: int, worse: float) -> str:
    """Why ``new`` is not yet as good as ``old``; empty if it is. Each was measured by its trainer, before learning, on
    the targets that it learned last. So they are comparable once ``new`` has caught up, and on ``min_targets`` or its
    whole window, if that is shorter."""
    behind_s = (old.newest_record_ms - new.newest_record_ms) / 1000
    if behind_s > CAUGHT_UP_MS / 1000:
        return f"its newest learned action is {behind_s:,.0f} s older"
    if not new.quality.says_enough(min_targets):
        return f"it is measured on {new.quality.num_targets:,} targets of {new.quality.enough(min_targets):,}"
    return "; ".join(_worse(old.quality, new.quality, worse))


def _worse(old: Quality, new: Quality, worse: float) -> list[str]:
    found = []
    if old.hr10 is not None and (new.hr10 is None or new.hr10 < (1 - worse) * old.hr10):
        found.append(f"HR@10 {_number(new.hr10)}, the other's {old.hr10:.4f}")
    if old.ne is not None and (new.ne is None or new.ne > (1 + worse) * old.ne):
        found.append(f"normalised entropy {_number(new.ne)}, the other's {old.ne:.4f}")
    return found


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
