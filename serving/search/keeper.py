"""Makes the lists by which a large table is searched, beside the answers, and compares answers with exact ones."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.search.index import ItemSearch, best_standing, directions
from serving.search.lists import BLOCK_ROWS, ItemLists, assign, find_centres
from serving.versions.manager import HeldVersion, WeightsManager

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
MOST_CHANGED = BLOCK_ROWS
"""So many changed rows are put into lists; until then every query looks at them."""
RENEW_S, CENTRES_S, RETRY_S, LOOK_S = 60.0, 600.0, 30.0, 0.5
"""How often lists and best rows are renewed, whatever has changed; and at most, where recall is low, their centres."""
NICENESS = 10
logger = logging.getLogger(__name__)


class _ReplacedError(Exception):
    """The rows that lists are being made of are no longer the table's, or nobody waits for the lists any more."""


class SearchKeeper(threading.Thread):
    """A thread that answers no requests. What fails is logged and tried again; meanwhile answers are exact, or found by
    the lists before."""

    def __init__(self, search: ItemSearch, manager: WeightsManager) -> None:
        super().__init__(name="search", daemon=True)
        self._search, self._manager = search, manager
        self._stopping = threading.Event()
        self._num_rows, self._made_at, self._centres_at = 0, 0.0, 0.0

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._stopping.set()
        self._search.is_asked.set()

    def run(self) -> None:
        """Work until stopped."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._stopping.is_set():
            self._search.is_asked.wait(LOOK_S)
            try:
                self.compare()
                self.renew()
            except _ReplacedError:
                if not self._stopping.is_set():
                    logger.info("search: the table was replaced while its lists were made; making them anew")
            except Exception:
                self._search.num_failures += 1
                logger.exception("search: failed; trying again in %g seconds", RETRY_S)
                self._stopping.wait(RETRY_S)

    def compare(self) -> None:
        """Compare the answer that is waiting for it with the exact one, if its version is still in service."""
        asked = self._search.take_asked()
        with self._manager.hold() as version:
            if asked is not None and version is not None and version.which == asked[0]:
                self._search.compared(*asked[1](version))

    @torch.inference_mode()
    def renew(self) -> bool:
        """Make lists if it is time to; whether they were made, and are in use."""
        version, search, now = self._manager.current, self._search, time.monotonic()
        if version is None or version.standing is None or version.num_items < search.least_items:
            return False
        num_rows, lists = version.memory.num_rows, search.lists
        needs_centres = lists is None or num_rows > 2 * self._num_rows
        needs_centres |= search.is_low and now > self._centres_at + CENTRES_S
        is_old = lists is not None and (now > self._made_at + RENEW_S or len(lists.list_V) > num_rows)
        if not (needs_centres or is_old or search.num_changed > MOST_CHANGED) or not search.begin(version):
            return False
        return self._make(version, None if needs_centres else lists, search.changed)

    def _make(self, version: HeldVersion, lists: ItemLists | None, changed: Int32) -> bool:
        began, since = time.monotonic(), self._search.line_since
        assert version.standing is not None
        rows, best = best_standing(version.standing)
        list_V = np.full(len(version.standing.base_VB), -1, np.int32)
        read = self._reader(since)
        if lists is None:
            centre_LD = find_centres(rows, read)
            self._num_rows, self._centres_at = len(list_V), time.monotonic()
        else:
            centre_LD, num = lists.centre_LD, min(len(list_V), len(lists.list_V))
            known = rows[rows < num]
            list_V[known] = lists.list_V[known]
            list_V[changed[changed < num]] = -1
            rows = rows[list_V[rows] < 0]
        assign(list_V, rows, centre_LD, read)
        made = ItemLists.of(centre_LD, list_V)
        is_used, self._made_at = self._search.finish(made, best, since), time.monotonic()
        level, took_s = logging.INFO if lists is None else logging.DEBUG, self._made_at - began
        logger.log(level, "search: %d rows in %d lists, %d of them sorted in %.1f s", len(made.row_n), made.num_lists,
                   len(rows), took_s)  # fmt: skip
        return is_used

    def _reader(self, since: int) -> Callable[[Int64], Tensor]:
        """Copies rows of whichever version is in service, held no longer than that takes. Raises `_ReplacedError`."""

        def read(rows: Int64) -> Tensor:
            if self._stopping.is_set():
                raise _ReplacedError
            with self._manager.hold() as version:
                if version is None or self._search.line_since != since:
                    raise _ReplacedError
                return directions(version, rows)

        return read
