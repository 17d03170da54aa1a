"""The servers that hold other users, as they report in the status topic, and whether they answered lately."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from wire.checks import is_base_url
from wire.cluster import FORGOTTEN_MS, SILENT_MS
from wire.holding import partitions_held
from wire.status import ServerStatus, status_of

logger = logging.getLogger(__name__)
SILENT_S, FORGOTTEN_S = SILENT_MS / 1000, FORGOTTEN_MS / 1000
BREAK_S = 2.0
"""A longer pause between two reports, of whatever process, is one of the broker, and counts as this."""
AVOIDED_S = 1.0
"""How long a server that failed to answer is not asked again."""


@dataclass(slots=True, eq=False)
class Peer:
    """A server that says whom it holds. ``heard_s``: when, by the clock of `Peers`."""

    name: str
    address: str
    held: frozenset[int]
    num_partitions: int
    line: str
    heard_s: float
    avoided_until_s: float = 0.0
    """Monotonic."""
    has_failed: bool = False
    answered_s: float = 0.0
    """Monotonic: when it last answered a forwarded request, whatever it said but that it is not the right one."""
    misdirected_since_s: float = 0.0
    """Monotonic: since when it has refused whatever it was asked (421); 0 if it has not."""


@dataclass(eq=False)
class Peers:
    """Fed by one thread (`hear`), read by the event loop.

    A server has fallen silent when others, this one included, go on reporting and it does not. While the broker is
    away nobody reports, and everybody is believed to go on. ``own``: this server's name; ``allowed``: the only
    addresses that are used, if there are any.
    """

    own: str = ""
    allowed: Sequence[str] = ()
    _peers: dict[str, Peer] = field(default_factory=dict)
    _clock_s: float = 0.0
    _heard_s: float = field(default_factory=time.monotonic)

    def hear(self, value: bytes | None, *, is_earlier: bool = False) -> None:
        """Take a record of the status topic: one that has just arrived, or an earlier one, as old as it says."""
        status = status_of(value)
        if status is None:
            return
        now_s = time.monotonic()
        self._clock_s += min(now_s - self._heard_s, BREAK_S)
        self._heard_s = now_s
        if isinstance(status, ServerStatus) and status.component != self.own:
            self._note(status, max(0.0, time.time() - status.time_ms / 1000) if is_earlier else 0.0)
        for name in [each.name for each in self._peers.values() if self._clock_s - each.heard_s > FORGOTTEN_S]:
            del self._peers[name]

    def _note(self, status: ServerStatus, age_s: float) -> None:
        known = self._peers.get(status.component)
        if known is not None and self._clock_s - age_s < known.heard_s:
            return  # heard again after a newer one: the topic is read from an earlier place than before
        if not status.address:  # of an earlier build, or not meant to be reached
            self._peers.pop(status.component, None)
            return
        if not self._may_ask(status.address):
            if known is None or known.address != status.address:
                logger.warning("server %s reports the address %.200r, to which nothing is forwarded (serving.peers)",
                               status.component, status.address)  # fmt: skip
            held, address = frozenset[int](), status.address
        else:
            held, address = partitions_held(status.partitions, status.num_partitions), status.address
        if known is None or known.address != address:
            known = self._peers[status.component] = Peer(status.component, address, held, 0, "", 0.0)
        known.held, known.num_partitions, known.line = held, status.num_partitions, status.line
        known.heard_s = self._clock_s - age_s

    def _may_ask(self, address: str) -> bool:
        return is_base_url(address) and (not self.allowed or address in self.allowed)

    def live(self) -> list[Peer]:
        """The servers that have not fallen silent, by name."""
        found = [each for each in self._peers.copy().values() if self._clock_s - each.heard_s < SILENT_S]
        return sorted(found, key=lambda each: each.name)

    def holders(self, partition: int, num_partitions: int) -> list[Peer]:
        """The live servers that hold a partition of so many, by name."""
        return [each for each in self.live() if each.num_partitions == num_partitions and partition in each.held]

    def unheld(self, own: frozenset[int], num_partitions: int) -> frozenset[int]:
        """The partitions that neither this server nor a live one holds."""
        others = (each.held for each in self.live() if each.num_partitions == num_partitions)
        return frozenset(range(num_partitions)).difference(own, *others)


def in_order(holders: Sequence[Peer], turn: int, line: str) -> list[Peer]:
    """The holders in the order in which to ask them: those of our line first, from a place that is the same for a user
    each time, so that one server caches each user; without those that have just failed."""
    now_s, first = time.monotonic(), turn % max(1, len(holders))
    turned = [*holders[first:], *holders[:first]]
    return sorted((each for each in turned if each.avoided_until_s <= now_s), key=lambda each: each.line != line)
