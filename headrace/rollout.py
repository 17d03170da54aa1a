"""`headrace pin`, `unpin`, `rollback`, `switch`: which version, of which line of training, all servers answer from."""

from __future__ import annotations

import getpass
import os
import platform
import time

from headrace.config import Settings
from headrace.lines import followed_line, on_line, wait_until_as_good
from headrace.sentences import say
from headrace.versions import manifests
from wire.control import LINE_KEY, PIN_KEY, Migration, Pin, Switch, Which, encode_decision, parse_version
from wire.errors import TopicMissing, VersionError
from wire.kafka.producer import send_one
from wire.topics import Topics
from wire.weights import Manifest


def pin(settings: Settings, version: str, reason: str = "") -> int:
    """Pin a version that is in the topic, or one that is still to come. Raises `VersionError` for any other."""
    which, settings = parse_version(version), on_line(settings, followed_line(settings))
    newest = manifests(settings, bool)[-1:]
    is_to_come = not newest or which > newest[0].which
    found = None if is_to_come else _present(settings, which)
    if found is None and not is_to_come:
        raise VersionError(
            f"version: expected one that is in the topic with its base, or one above {_name(newest[0].which)}, which "
            f"is still to come, got {version}; `headrace versions` lists them"
        )
    return _pin(settings, which, reason, found)


def rollback(settings: Settings, version: str | None, reason: str = "") -> int:
    """Pin a version that is in the topic; None: the last one of the epoch before the newest, or the one before it."""
    settings = on_line(settings, followed_line(settings))
    chosen = _previous(settings) if version is None else _present(settings, parse_version(version))
    if chosen is None:
        raise VersionError(
            f"version: expected one that is in the topic with its base, got {version}; `headrace versions` lists them"
        )
    return _pin(settings, chosen.which, reason or "rollback", chosen)


def _previous(settings: Settings) -> Manifest:
    """The last version of the epoch before the newest, or the one before the newest."""
    listed = _reachable(manifests(settings, lambda found: len(_reachable(found)) > 1))
    if len(listed) < 2:
        raise VersionError(f"version: expected two or more in the topic, got {len(listed)}")
    earlier = manifests(settings, lambda found: bool(_reachable(found)), before=(listed[-1].epoch, 0))
    return (_reachable(earlier) or listed[:-1])[-1]


def _present(settings: Settings, which: Which) -> Manifest | None:
    """A version, if the topic has it and its base."""

    def is_settled(found: list[Manifest]) -> bool:
        target = _find(found, which)
        oldest = which if target is None else (target.epoch, target.base_number)
        return bool(found) and found[0].which <= oldest

    return _find(_reachable(manifests(settings, is_settled, before=(which[0], which[1] + 1))), which)


def unpin(settings: Settings) -> int:
    """Let servers follow the newest good version again."""
    send_decision(settings, PIN_KEY, None)
    say("servers follow the newest good version again")
    return 0


def switch(settings: Settings, line: str, reason: str = "", *, when_as_good: bool, worse: float) -> int:
    """Have all servers follow the versions of a line of training (empty: the main one): at once, or as soon as the
    newest is not worse than theirs by more than the fraction ``worse``."""
    before = followed_line(settings)
    try:
        found = manifests(on_line(settings, line), bool)
    except TopicMissing:
        found = []
    if not found:
        raise VersionError(
            f'line {line!r}: expected versions, found none; is its trainer running, with kafka.line = "{line}"?'
        )
    if when_as_good and line != before:
        wait_until_as_good(on_line(settings, before), on_line(settings, line), worse)
    made_ms = int(time.time() * 1000)
    send_decision(settings, LINE_KEY, Switch(line=line, made_ms=made_ms, made_by=who(), reason=reason))
    say(
        f"servers follow the versions of {_line(line)}, and no longer those of {_line(before)}; /readyz of each says so"
    )
    return 0


def _line(line: str) -> str:
    return f"line {line}" if line else "the main line"


def who() -> str:
    """User and machine. In a container the user may have a number and no name."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{platform.node()}"


def _find(listed: list[Manifest], which: Which) -> Manifest | None:
    return next((each for each in reversed(listed) if each.which == which), None)


def _reachable(listed: list[Manifest]) -> list[Manifest]:
    """The versions whose base is still in the topic."""
    present = {each.which for each in listed}
    return [each for each in listed if (each.epoch, each.base_number) in present]


def _pin(settings: Settings, which: Which, reason: str, found: Manifest | None) -> int:
    made_ms, line = int(time.time() * 1000), settings.kafka.line
    decision = Pin(epoch=which[0], number=which[1], made_ms=made_ms, made_by=who(), reason=reason, line=line)
    send_decision(settings, PIN_KEY, decision)
    age = "which is still to come" if found is None else f"of {found.num_interactions:,} interactions"
    say(f"servers answer from version {_name(which)} ({age}) until `headrace unpin`; /readyz of each says so")
    return 0


def send_decision(settings: Settings, key: bytes, decision: Pin | Switch | Migration | None) -> None:
    """Write a decision (None: a tombstone) into the control topic."""
    value = encode_decision(decision) if decision is not None else None
    send_one(settings.kafka, Topics.under(settings.kafka.prefix).control, key, value, "decision")


def _name(which: Which) -> str:
    return f"{which[0]}/{which[1]}"
