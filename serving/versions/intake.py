"""Puts versions into service: each that fits is staged; a good one is swapped in, another is held back."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from serving.versions.guard import Guard
from serving.versions.manager import WeightsManager
from serving.versions.rollout import Rollout
from wire.control import Which
from wire.errors import HeadraceError
from wire.thinned_log import is_told
from wire.weights import Manifest, Version

logger = logging.getLogger(__name__)
UNFIT = (HeadraceError, ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What a version raises that is of another build or configuration, or claims to be of any size."""


@dataclass(slots=True)
class Counters:
    """How many versions were applied, dropped (by the assembler), unlinked (no base here) and refused (do not fit)."""

    num_applied: int = 0
    num_dropped: int = 0
    num_unlinked: int = 0
    num_refused: int = 0


@dataclass(eq=False)
class VersionIntake:
    """Gives a `WeightsManager` complete versions, in the order in which they arrive. For the subscriber's thread."""

    manager: WeightsManager
    rollout: Rollout = field(default_factory=Rollout)
    guard: Guard = field(default_factory=lambda: Guard(None))
    counters: Counters = field(default_factory=Counters)

    def take(self, version: Version, *, is_pinned: bool) -> bool:
        """Stage a version, and judge it unless it is pinned; False if it does not build on what is held here."""
        manifest = version.manifest
        if not self.manager.accepts(manifest):
            self.counters.num_unlinked += 1
            what = f"{manifest.kind} onto {manifest.onto_number}"
            logger.warning("version %s (%s) cannot be applied here; waiting for a base", name_of(manifest.which), what)
            return False
        problem = "" if is_pinned else self.guard.problem(manifest)
        if problem:
            self.swap()  # the one staged before it is good
        if self.put(version):
            self._judge(manifest, problem)
        return True

    def put(self, version: Version) -> bool:
        """Stage a version; whether it fits this build."""
        try:
            self.manager.stage(version)
        except UNFIT as error:
            self.counters.num_refused += 1
            name = name_of(version.manifest.which)
            logger.warning("version %s does not fit this build and is not served: %s", name, error)
            return False
        self.counters.num_applied += 1
        return True

    def _judge(self, manifest: Manifest, problem: str) -> None:
        """Hold the version back if it has a problem, or let it answer."""
        if problem:
            if self.rollout.held == self.rollout.missing:
                logger.error("version %s is held back (%s); answering from the last good one until a newer one is good",
                             name_of(manifest.which), problem)  # fmt: skip
            self.rollout.hold(manifest.which, problem)
            return
        if self.rollout.held != self.rollout.missing:
            logger.warning("version %s is good again", name_of(manifest.which))
        self.rollout.release()
        self.guard.accept(manifest)

    def swap(self) -> bool:
        """Let the staged version answer, unless it is held back; whether another one answers now."""
        before, staged = self.manager.current, self.manager.staged
        if staged is not None and staged.which == self.rollout.held:
            return False
        self.manager.swap()
        current = self.manager.current
        if current is before or current is None:
            return False
        # A delta every other second is not news; the first version is, and so is a new epoch.
        is_news = before is None or before.which[0] != current.which[0]
        logger.log(logging.INFO if is_news else logging.DEBUG, "answering from version %d/%d (%s)", *current.which,
                   current.manifest.kind)  # fmt: skip
        return True

    def dropped(self, reason: str) -> None:
        """Note a version that the assembler has dropped."""
        self.counters.num_dropped += 1
        if is_told(self.counters.num_dropped):
            logger.warning("%s (number %d so far)", reason, self.counters.num_dropped)


def name_of(which: Which) -> str:
    """A version's name as the logs and the commands write it."""
    return f"{which[0]}/{which[1]}"
