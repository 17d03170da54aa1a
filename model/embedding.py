"""Embedding tables for a changing vocabulary: 64-bit key → row. Keys arrive and are evicted by age; rows learn singly.

Row 0 of every table is the cold row, which stands for every key without a row of its own (not admitted yet, evicted,
never seen, or the absent key 0). No other row is shared. Rows that changed are ``dirty`` until a version carries them.

Several processes may divide a table: one has all keys and marks, each has the weights of its share of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import IdMap
from kernels.transfer import to_device
from model.dirty import CHANGED, UNPUBLISHED, UNSAVED, clear, is_dirty
from model.distinct import distinct
from model.growing import GrowingRows
from model.key_set import KeySet
from model.row_store import RowStore
from model.share import WHOLE, Owners, Share

Int64 = NDArray[np.int64]
BLOCK_ROWS = 1 << 12


class EmbeddingTable:
    """Weights (capacity, D), their row-wise Adagrad state, the key map, and which rows are dirty.

    ``salt`` gives tables with the same seed different random numbers. The same calls in the same order give the same
    table. ``precision``: what the weights are stored as (`model.row_store.PRECISIONS`).
    """

    def __init__(
        self,
        width: int,
        *,
        init_std: float,
        seed: int,
        salt: int,
        admit_after: int = 1,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        precision: str = "float32",
    ) -> None:
        self.width = width
        self.map = IdMap(1024, admit_after=admit_after, backend=backend if backend == "reference" else "auto")
        self.store = RowStore(width, device, backend, precision, (seed, salt))
        self._marks = {"live": GrowingRows((), np.bool_), "dirty": GrowingRows((), np.uint8)}
        self._grow(1)
        self._num_live_B = np.zeros(1, np.int64)
        """How many rows of each block have a key, for `live_at`."""
        self.tombstones: list[int] = []
        self.num_dropped = 0
        """Keys that lost their rows since this process began."""
        self.renewed: list[tuple[Int64, Tensor | None]] | None = None
        """Rows that got a key, with their weights, or lost it (None), since the last copy; None if nobody copies."""
        self.owners: Owners | None = None
        """Where to ask for rows that this process does not hold; None if it holds all."""
        self.before_change: Callable[[Int64 | None], None] = lambda _: None
        """Called with rows that are about to be learned or dropped; with None if all of them may move."""
        self.blocked = KeySet()
        """Keys that get no row."""
        self._init_std, self._seed, self._salt = init_std, seed, salt
        self.live[0], self.dirty[0] = True, CHANGED
        self.weight[0] = self._initial_rows(1, step=-1)[0]

    @property
    def weight(self) -> Tensor:
        """(capacity, D): of the rows that this process holds, as they are stored."""
        return self.store.weight

    @property
    def state(self) -> Tensor:
        """(capacity,): theirs."""
        return self.store.state

    @property
    def num_rows(self) -> int:
        """One above the highest row in use, the cold row included."""
        return self.map.num_rows + 1

    @property
    def num_live(self) -> int:
        """How many keys have a row of their own."""
        return len(self.map)

    def lookup(self, keys_N: Int64) -> Int64:
        """(N,) rows; 0 for keys without one."""
        if not len(keys_N):
            return np.zeros(0, np.int64)
        return self.map.lookup(keys_N, 1)  # 0 for the absent key too, which is never inserted

    def insert(self, keys_N: Int64, now_ms: int, step: int) -> Int64:
        """Count one sighting of each key, in order; (N,) rows, 0 for keys that are not admitted yet."""
        present = keys_N != 0
        if self.blocked:
            present &= ~self.blocked.holds(keys_N)
        rows = np.zeros(len(keys_N), np.int64)
        rows[present] = self.map.insert(keys_N[present], now_ms) + 1
        self._grow(self.num_rows)
        self.dirty[rows] |= UNSAVED  # the time of the last sighting
        arrived = rows[~self.live[rows]]
        if len(arrived):
            if not (arrived[1:] > arrived[:-1]).all():  # usually they are ascending already
                arrived = distinct(arrived)
            self.live[arrived], self.dirty[arrived] = True, CHANGED
            self._count_live(arrived, 1)
            self._initialise(arrived, step)
        return rows

    def _initialise(self, rows_U: Int64, step: int) -> None:
        first, stop = int(rows_U[0]), int(rows_U[-1]) + 1
        is_whole, all_new = self.store.share == WHOLE, stop - first == len(rows_U)
        if is_whole and all_new and self.weight.device.type == "cpu" and self.store.is_exact:  # written in place
            weight_UD = self.weight[first:stop]
            self._draw_rows(weight_UD.numpy(), step)
            self.state[first:stop] = 0.0
        else:
            weight_UD = self._initial_rows(len(rows_U), step)
            self.store.put(rows_U, weight_UD, None)
        if self.renewed is not None:
            self.renewed.append((rows_U, weight_UD.clone()))

    def put(self, rows_U: Int64, live_U: NDArray[np.bool_], weight_UD: Tensor, state_U: Tensor | None) -> None:
        """Copy these rows from another table, without their keys. ``state_U``: None if they are new."""
        self._grow(int(rows_U.max(initial=-1)) + 1)
        self.live[rows_U] = live_U
        self.store.put(rows_U, weight_UD, state_U)

    def divide(self, share: Share, owners: Owners | None = None) -> None:
        """Keep the weights of this share of the rows. ``owners``: where to ask for the others'."""
        self.before_change(None)
        self.store.hold(share, *self.read(share.rows(self.num_rows)))
        self.owners = owners

    def unite(self) -> None:
        """Take the weights of all rows back from their owners."""
        self.store.hold(WHOLE, *self.read(np.arange(self.num_rows)))
        self.owners = None

    def _grow(self, num_rows: int) -> None:
        self.store.grow(num_rows)
        for marks in self._marks.values():
            marks.grow(num_rows)
        num = min(len(marks.array) for marks in self._marks.values())
        self.live, self.dirty = (marks.array[:num] for marks in self._marks.values())

    def _initial_rows(self, num_rows: int, step: int) -> Tensor:
        rows = np.empty((num_rows, self.width), np.float32)
        self._draw_rows(rows, step)
        return to_device(rows, self.weight.device)

    def _draw_rows(self, rows_UD: NDArray[np.float32], step: int) -> None:
        """Normally distributed rows, a function of seed, table and step; the last column (the bias) starts at zero."""
        generator = np.random.Generator(np.random.Philox(key=[self._seed, (self._salt << 48) + step + 1]))
        generator.standard_normal(out=rows_UD, dtype=np.float32)
        rows_UD *= np.float32(self._init_std)
        rows_UD[:, -1] = 0.0

    def evict(self, before_ms: int) -> Int64:
        """Drop keys last seen before ``before_ms``; returns their rows, which later keys will reuse. The keys are
        published as tombstones."""
        return self._drop(*self.map.evict(before_ms))

    def newest_seen_ms(self, num: int) -> int:
        """When the ``num``-th of the keys, from the newest on, was last seen: `evict` before that leaves it, and all
        that were seen at the same moment or later."""
        _, seen_ms = self.seen(self.live_rows())
        return int(np.partition(seen_ms, len(seen_ms) - num)[len(seen_ms) - num])

    def block(self, keys_N: Int64) -> Int64:
        """Drop these keys as `evict` does, and give them no row again until `unblock`; returns their rows."""
        self.blocked |= set(keys_N.tolist())
        return self._drop(*self.map.remove(keys_N))

    def unblock(self, keys_N: Int64) -> None:
        """These keys may have rows again."""
        self.blocked -= set(keys_N.tolist())

    def _drop(self, keys: Int64, rows: Int64) -> Int64:
        rows = rows + 1
        self.before_change(rows)
        self.live[rows], self.dirty[rows] = False, CHANGED
        self._count_live(rows, -1)
        self.store.put(rows, torch.zeros((len(rows), self.width)), None)
        if self.renewed is not None:
            self.renewed.append((rows, None))
        self.tombstones.extend(keys.tolist())
        self.num_dropped += len(keys)
        return rows

    def gather(self, rows_U: Int64) -> Tensor:
        """(U, D) float32: a copy of these rows, as an autograd leaf that collects their gradient."""
        return self.store.gather(rows_U).requires_grad_()

    def read(self, rows_U: Int64) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(U, D) and (U,) copies of ascending rows' weights and optimiser states."""
        return self.owners.read(rows_U) if self.owners is not None else self.store.read(self.store.share.places(rows_U))

    def learn(self, rows_U: Int64, grad_UD: Tensor, lr: float, step: int) -> None:
        """One row-wise Adagrad step on distinct rows that this process holds (`RowStore.learn`)."""
        self.before_change(rows_U)
        self.store.learn(self.store.share.places(rows_U), grad_UD, lr, step)
        self.touch(rows_U)

    def touch(self, rows_U: Int64) -> None:
        """Mark rows that are changed, here or at their owners."""
        self.dirty[rows_U] = CHANGED

    def is_finite(self) -> bool:
        """Whether all weights and states are finite."""
        return self.owners.is_finite() if self.owners is not None else self.store.is_finite(0, self.num_rows)

    def live_rows(self) -> Int64:
        """Rows that belong to a key, ascending; the cold row is not among them."""
        return np.flatnonzero(self.live[1 : self.num_rows]) + 1

    def live_at(self, place_N: Int64) -> Int64:
        """(N,) the rows at these places in `live_rows`, without listing all rows."""
        if self.num_live == self.num_rows - 1:
            return place_N + 1
        end_B = np.cumsum(self._num_live_B)
        block_N = np.searchsorted(end_B, place_N, side="right")
        found_N = np.empty_like(place_N)
        for block in distinct(block_N).tolist():
            first = max(1, block * BLOCK_ROWS)
            rows = np.flatnonzero(self.live[first : (block + 1) * BLOCK_ROWS]) + first
            at = block_N == block
            found_N[at] = rows[place_N[at] - (end_B[block] - self._num_live_B[block])]
        return found_N

    def _count_live(self, rows_U: Int64, change: int) -> None:
        """Count distinct rows that have got (1) or lost (-1) a key."""
        num_blocks = len(self.live) // BLOCK_ROWS + 1
        if num_blocks > len(self._num_live_B):
            more = np.zeros(max(num_blocks, 2 * len(self._num_live_B)) - len(self._num_live_B), np.int64)
            self._num_live_B = np.append(self._num_live_B, more)
        np.add.at(self._num_live_B, rows_U // BLOCK_ROWS, change)

    def keys_of(self, rows_U: Int64) -> Int64:
        """(U,) keys of rows; 0 for the cold row."""
        return self.seen(rows_U)[0]

    def seen(self, rows_U: Int64) -> tuple[Int64, Int64]:
        """(U,) keys of rows and (U,) when each was last seen (ms); zeros for the cold row and for free ones."""
        keys_U, seen_U, own = np.zeros(len(rows_U), np.int64), np.zeros(len(rows_U), np.int64), rows_U > 0
        keys_U[own], seen_U[own] = self.map.of_rows(rows_U[own] - 1)
        return keys_U, seen_U

    def changes(self, *, everything: bool) -> tuple[Int64, Int64, NDArray[np.float32], Int64]:
        """(keys, rows, weights, tombstones) to publish: all live rows, or the dirty ones."""
        chosen = (self.live if everything else self.live & is_dirty(self.dirty, UNPUBLISHED))[: self.num_rows]
        rows = np.flatnonzero(chosen)
        weights, _ = self.read(rows)
        tombstones = np.zeros(0, np.int64) if everything else np.array(self.tombstones, np.int64)
        return self.keys_of(rows), rows, weights, tombstones

    def mark_published(self) -> None:
        """Start collecting the next changes: the caller delivers what `changes` returned."""
        clear(self.dirty, UNPUBLISHED)
        self.tombstones = []

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        rows = self.num_rows
        weight, state = self.read(np.arange(rows))
        return {
            "weight": weight,
            "state": state,
            "live": self.live[:rows],
            "dirty": self.live[:rows] & is_dirty(self.dirty[:rows], UNPUBLISHED),
            "tombstones": np.array(self.tombstones, np.int64),
            "blocked": self.blocked.array,
            **{f"map.{key}": value for key, value in self.map.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become the table that ``state`` was taken from."""
        self.map.load_state_dict({key.removeprefix("map."): value for key, value in state.items() if key[:4] == "map."})
        rows = self.num_rows
        self._grow(rows)
        self.live[:], self.dirty[:] = False, 0
        self._num_live_B[:] = 0
        self._count_live(np.flatnonzero(state["live"][1:]) + 1, 1)
        self.live[:rows], self.dirty[:rows] = state["live"], np.where(state["dirty"], CHANGED, UNSAVED)
        self.weight.zero_(), self.state.zero_()
        self.weight[:rows] = torch.from_numpy(np.ascontiguousarray(state["weight"]))
        self.state[:rows] = torch.from_numpy(np.ascontiguousarray(state["state"]))
        self.tombstones = state["tombstones"].tolist()
        self.blocked = KeySet(state["blocked"].tolist() if "blocked" in state else ())
