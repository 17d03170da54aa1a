"""The version in service: a single reference, swapped atomically, and a count of the requests that hold each version.

`WeightsManager.hold` gives a request its version for as long as it takes; `stage` prepares the next one beside it (on
the subscriber's thread), and `swap` makes it the one that later requests get. No request waits for a swap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.memory import MemoryStanding
from model.memory import Memory
from model.tokens import ITEMS
from serving.model.cache import Born
from serving.model.network import Network
from serving.model.soundness import check_sound
from serving.model.tables import TableSet
from wire.weights import Manifest, Snapshot, Version

Change = tuple[Snapshot, bool]
"""What a version carries, and whether it is a base."""


@dataclass(slots=True, eq=False)
class _Side:
    """One of the two table sets, how many requests read it, and the changes that it has missed."""

    tables: TableSet
    num_readers: int = 0
    missed: list[Change] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class HeldVersion:
    """One version's weights, complete and unchanging while a request holds them."""

    manifest: Manifest
    network: Network
    tables: TableSet
    names: dict[int, str | int]
    swapped_ms: int
    side: _Side
    num_items: int
    born: Born
    standing: MemoryStanding | None
    """The part of the memory's scores that is the same for all users; None if the tables are on a GPU."""
    changed_rows: NDArray[np.int64] | None
    """Rows of the item table that it changes; None: all, since it contains a base."""
    counted_rows: NDArray[np.int64]
    """Rows of the memory that it changes; empty if it contains a base."""

    @property
    def which(self) -> tuple[int, int]:
        """(epoch, number)."""
        return self.manifest.epoch, self.manifest.number

    @property
    def memory(self) -> Memory:
        """The version's memory of which items follow which."""
        assert self.tables.memory is not None
        return self.tables.memory

    @property
    def leaves_out_repeats(self) -> bool:
        """Whether items that a user has met are left out: by the trainer's setting, or if ``auto``, by the stream."""
        rule = self.manifest.learning.get("exclude_seen", "auto")
        return rule == "always" or (rule == "auto" and self.memory.leaves_out_repeats)

    @property
    def freshness_s(self) -> float:
        """Age of the newest action learned, by the wall clock, rounded to milliseconds."""
        return max(0.0, round(time.time() - self.manifest.newest_record_ms / 1000, 3))


class WeightsManager:
    """The version in service and the one being prepared. One thread stages and swaps; any number hold."""

    def __init__(self, device: torch.device | None = None, *, backend: str = "auto", swap_wait_s: float = 1.0) -> None:
        self._device, self._backend, self._swap_wait_s = device or torch.device("cpu"), backend, swap_wait_s
        self._free = threading.Condition()
        self._idle = self._empty_side()
        self._current: HeldVersion | None = None
        self._staged: tuple[Manifest, Network] | None = None
        self._changes: list[Change] = []
        self._names: dict[int, str | int] = {}
        self._begins_anew = False
        self._num_anew = 0
        self.before_swap: list[Callable[[HeldVersion], Callable[[], None]]] = []
        """Called with a version that is about to come into service; the functions returned are called once it has."""
        self.num_swaps = 0
        self.num_copies = 0
        """Swaps that had to copy the tables, because requests still held the version before the last."""

    @property
    def current(self) -> HeldVersion | None:
        """The version in service, for inspection; to compute with it, `hold` it."""
        return self._current

    @contextmanager
    def hold(self) -> Iterator[HeldVersion | None]:
        """The version in service (None before the first), unchanging until the block ends."""
        with self._free:
            held = self._current
            if held is not None:
                held.side.num_readers += 1
        try:
            yield held
        finally:
            if held is not None:
                with self._free:
                    held.side.num_readers -= 1
                    self._free.notify_all()

    def accepts(self, manifest: Manifest) -> bool:
        """Whether this version follows the one staged, or in service: a newer base, or the delta onto exactly that."""
        current = self._current.manifest if self._current is not None and not self._begins_anew else None
        return manifest.follows(self._staged[0] if self._staged else current)

    @property
    def staged(self) -> Manifest | None:
        """The version that `swap` would put into service."""
        return self._staged[0] if self._staged else None

    @property
    def is_anew(self) -> bool:
        """Whether the first base after `begin_anew` has not arrived yet."""
        return self._begins_anew

    def begin_anew(self) -> None:
        """Take the next base whatever its number, because numbering starts over."""
        self.discard()
        self._begins_anew = True
        self._num_anew += 1

    def end_anew(self) -> None:
        """Undo `begin_anew`: go on as before."""
        self.discard()
        self._begins_anew = False

    def stage(self, version: Version) -> None:
        """Apply a version that `accepts` allows to the side that no request reads.

        Raises `VersionError` if its numbers are not finite, and other errors (ValueError and the like) if it does not
        fit this build. What was staged before then stays so, unless the version was applied in part.
        """
        is_base = version.manifest.kind == "base"
        change: Change = (version.snapshot, is_base)
        network = Network.build(version.manifest, version.snapshot.dense, self._device, self._backend)
        check_sound(version, network)
        try:
            if self._current is None and self._staged is None:
                network.warm()
            if self._staged is None:
                self._catch_up(network, skip=is_base)
            self._idle.tables.apply(change[0], network.derived, network.config, is_base=is_base)
        except BaseException:
            self.discard()
            raise
        self._names = dict(version.snapshot.names) if is_base else self._names
        # A hash always stands for the same key, so requests may read this dictionary while it grows.
        self._names.update(version.snapshot.names)
        self._changes = [change] if is_base else [*self._changes, change]
        self._staged, self._begins_anew = (version.manifest, network), False

    def discard(self) -> None:
        """Discard what is staged; the version in service stays."""
        self._idle = self._empty_side()
        if self._current is not None:
            self._idle.tables = self._current.tables.copy(self._current.network.derived)
            self._names = self._current.names
        self._staged, self._changes = None, []

    def discard_staged(self) -> None:
        """Discard what is staged, if anything is."""
        if self._staged is not None:
            self.discard()

    def swap(self) -> None:
        """Put the staged version into service, if there is one."""
        if self._staged is None:
            return
        manifest, network = self._staged
        now_ms = int(time.time() * 1000)
        tables = self._idle.tables
        memory = tables.memory if self._device.type == "cpu" else None
        standing = memory.stand() if memory is not None else None
        born = Born((manifest.epoch, self._num_anew), self.num_swaps)
        num_items = tables[ITEMS].num_live
        new = HeldVersion(
            manifest, network, tables, self._names, now_ms, self._idle, num_items, born, standing,
            *_rows_of(self._changes),
        )  # fmt: skip
        after_swap = [prepare(new) for prepare in self.before_swap]
        with self._free:
            before, self._current = self._current, new
        for finish in after_swap:
            finish()
        self._idle = before.side if before is not None else self._empty_side()
        self._idle.missed = self._changes
        self._staged, self._changes = None, []
        self.num_swaps += 1

    def settle(self) -> None:
        """If no request reads the other side, bring it up to date now, so that the rows it missed can be freed."""
        with self._free:
            is_read = self._idle.num_readers > 0
        if not is_read and self._idle.missed and self._staged is None and self._current is not None:
            self._catch_up(self._current.network, skip=False)

    def _empty_side(self) -> _Side:
        return _Side(TableSet(self._device, self._backend))

    def _catch_up(self, network: Network, *, skip: bool) -> None:
        """Wait until no request reads the idle side, and apply what it missed (unless a base replaces it anyway)."""
        with self._free:
            is_free = self._free.wait_for(lambda: self._idle.num_readers == 0, self._swap_wait_s)
        if not is_free:
            # A request takes long: leave that side to it, and continue with a copy of the one in service.
            self.num_copies += 1
            self.discard()
            return
        missed, self._idle.missed = self._idle.missed, []
        for change, is_base in [] if skip else missed:
            self._idle.tables.apply(change, network.derived, network.config, is_base=is_base)


def _rows_of(changes: Sequence[Change]) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """Rows of the item table that these changes touch (None: all), and rows of the memory."""
    none = np.zeros(0, np.int64)
    if any(is_base for _, is_base in changes):
        return None, none
    items = [snapshot.tables[ITEMS].row_index for snapshot, _ in changes if ITEMS in snapshot.tables]
    counted = [snapshot.memory["row_index"] for snapshot, _ in changes if "row_index" in snapshot.memory]
    return np.concatenate([none, *items]), np.concatenate([none, *counted])
