"""Embedding tables for a vocabulary that changes: 64-bit key → row; keys arrive, are evicted by age, learn row by row.

Row 0 of every table is the cold row, which stands for every key without a row of its own (not admitted yet, evicted,
never seen, or the absent key 0). No other row is shared. Rows that changed are ``dirty`` until a version carries them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import IdMap, rowwise_adagrad_
from model.growing import GrowingRows
from model.marks import CHANGED, UNPUBLISHED, UNSAVED, clear, is_marked

Int64 = NDArray[np.int64]
BLOCK_ROWS = 1 << 12


class EmbeddingTable:
    """Weights (capacity, D), their row-wise Adagrad state, the key map, and which rows are dirty.

    ``salt`` gives tables with the same seed different initial rows. The same calls in the same order give the same
    table.
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
    ) -> None:
        self.width = width
        self.map = IdMap(1024, admit_after=admit_after, backend=_map_backend(backend))
        self.weight, self.state = torch.zeros((0, width), device=device), torch.zeros(0, device=device)
        self._rows = {"live": GrowingRows((), np.bool_), "dirty": GrowingRows((), np.uint8)}
        if self.weight.device.type == "cpu":
            self._rows |= {"weight": GrowingRows((width,), np.float32), "state": GrowingRows((), np.float32)}
        self._see_rows()
        self._num_live_B = np.zeros(1, np.int64)
        """How many rows of each block belong to a key, for `live_at`."""
        self.tombstones: list[int] = []
        self.num_dropped = 0
        """Keys that lost their rows since this process began."""
        self.renewed: list[Int64] | None = None
        """Rows that a key has got or lost since whoever copies the table last looked; None if nobody does."""
        self._blocked: set[int] = set()
        self._init_std, self._seed, self._salt, self._backend = init_std, seed, salt, backend
        self.live[0], self.dirty[0] = True, CHANGED
        self.weight[0] = self._initial_rows(1, step=-1)[0]

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
        rows = self.map.lookup(keys_N) + 1
        rows[keys_N == 0] = 0
        return rows

    def insert(self, keys_N: Int64, now_ms: int, step: int) -> Int64:
        """Count one sighting of each key, in order; (N,) rows, 0 for keys that are not admitted yet."""
        present = keys_N != 0
        if self._blocked:
            present &= ~np.isin(keys_N, np.fromiter(self._blocked, np.int64))
        rows = np.zeros(len(keys_N), np.int64)
        rows[present] = self.map.insert(keys_N[present], now_ms) + 1
        self._grow(self.num_rows)
        self.dirty[rows] |= UNSAVED  # when it was seen
        arrived = rows[~self.live[rows]]
        if len(arrived):
            if not (arrived[1:] > arrived[:-1]).all():  # usually they are in order already, each once
                arrived = np.unique(arrived)
            self.live[arrived], self.dirty[arrived] = True, CHANGED
            self._count_live(arrived, 1)
            self._initialise(arrived, step)
            self._note_renewed(arrived)
        return rows

    def _initialise(self, rows_U: Int64, step: int) -> None:
        first, stop = int(rows_U[0]), int(rows_U[-1]) + 1
        if self.weight.device.type == "cpu" and stop - first == len(rows_U):  # all of them new: written where they stay
            self._draw_rows(self.weight[first:stop].numpy(), step)
            self.state[first:stop] = 0.0
            return
        where = torch.from_numpy(rows_U).to(self.weight.device)
        self.weight[where] = self._initial_rows(len(rows_U), step)
        self.state[where] = 0.0

    def _note_renewed(self, rows_U: Int64) -> None:
        if self.renewed is not None:
            self.renewed.append(rows_U)

    def put(self, rows_U: Int64, live_U: NDArray[np.bool_], weight_UD: Tensor, state_U: Tensor | None) -> None:
        """Take these rows over from another table, without their keys. ``state_U``: None if they are new."""
        self._grow(int(rows_U.max(initial=-1)) + 1)
        where = torch.from_numpy(rows_U).to(self.weight.device)
        self.live[rows_U] = live_U
        self.weight[where] = weight_UD.to(self.weight.device)
        self.state[where] = 0.0 if state_U is None else state_U.to(self.state.device)

    def _grow(self, num_rows: int) -> None:
        if num_rows > len(self.live):
            for rows in self._rows.values():
                rows.grow(num_rows)
            self._see_rows()

    def _see_rows(self) -> None:
        """Renew the views of the arrays after they have grown. On a GPU, which cannot grow memory, this is a copy."""
        self.live, self.dirty = self._rows["live"].array, self._rows["dirty"].array
        if "weight" in self._rows:
            self.weight, self.state = (torch.from_numpy(self._rows[name].array) for name in ("weight", "state"))
            return
        before = self.weight, self.state
        self.weight = self.weight.new_zeros((len(self.live), self.width))
        self.state = self.state.new_zeros(len(self.live))
        for old, new in zip(before, (self.weight, self.state), strict=True):
            new[: len(old)] = old

    def _initial_rows(self, num_rows: int, step: int) -> Tensor:
        rows = np.empty((num_rows, self.width), np.float32)
        self._draw_rows(rows, step)
        return torch.from_numpy(rows).to(self.weight.device)

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

    def block(self, keys_N: Int64) -> Int64:
        """Drop these keys, as `evict` does, and let them have no row again until `unblock`; their rows."""
        self._blocked |= set(keys_N.tolist())
        return self._drop(*self.map.remove(keys_N))

    @property
    def blocked(self) -> frozenset[int]:
        """Keys that may have no row."""
        return frozenset(self._blocked)

    def unblock(self, keys_N: Int64) -> None:
        """These keys may have rows again."""
        self._blocked -= set(keys_N.tolist())

    def _drop(self, keys: Int64, rows: Int64) -> Int64:
        rows = rows + 1
        where = torch.from_numpy(rows).to(self.weight.device)
        self.live[rows], self.dirty[rows] = False, CHANGED
        self._count_live(rows, -1)
        self.weight[where] = 0.0
        self.state[where] = 0.0
        self._note_renewed(rows)
        self.tombstones.extend(keys.tolist())
        self.num_dropped += len(keys)
        return rows

    def gather(self, rows_U: Int64) -> Tensor:
        """(U, D) a copy of these rows, as an autograd leaf that collects their gradient."""
        return self.weight.index_select(0, torch.from_numpy(rows_U).to(self.weight.device)).requires_grad_()

    def learn(self, rows_U: Int64, grad_UD: Tensor, lr: float) -> None:
        """One row-wise Adagrad step on distinct rows."""
        rowwise_adagrad_(
            self.weight,
            self.state,
            torch.from_numpy(rows_U).to(self.weight.device),
            grad_UD,
            lr=lr,
            backend=self._backend,
        )
        self.dirty[rows_U] = CHANGED

    def live_rows(self) -> Int64:
        """Rows that belong to a key, ascending; the cold row is not among them."""
        return np.flatnonzero(self.live[1 : self.num_rows]) + 1

    def live_at(self, place_N: Int64) -> Int64:
        """(N,) the rows at these places in `live_rows`, without going through all rows."""
        if self.num_live == self.num_rows - 1:
            return place_N + 1
        end_B = np.cumsum(self._num_live_B)
        block_N = np.searchsorted(end_B, place_N, side="right")
        found_N = np.empty_like(place_N)
        for block in np.unique(block_N).tolist():
            first = max(1, block * BLOCK_ROWS)
            rows = np.flatnonzero(self.live[first : (block + 1) * BLOCK_ROWS]) + first
            at = block_N == block
            found_N[at] = rows[place_N[at] - (end_B[block] - self._num_live_B[block])]
        return found_N

    def _count_live(self, rows_U: Int64, change: int) -> None:
        """These rows, which are distinct, begin (1) or cease (-1) to belong to a key."""
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
        chosen = (self.live if everything else self.live & is_marked(self.dirty, UNPUBLISHED))[: self.num_rows]
        rows = np.flatnonzero(chosen)
        weights = self.weight[torch.from_numpy(rows).to(self.weight.device)].cpu().numpy()
        tombstones = np.zeros(0, np.int64) if everything else np.array(self.tombstones, np.int64)
        return self.keys_of(rows), rows, weights, tombstones

    def mark_published(self) -> None:
        """Start collecting the next changes: the caller delivers what `changes` returned."""
        clear(self.dirty, UNPUBLISHED)
        self.tombstones = []

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        rows = self.num_rows
        return {
            "weight": self.weight[:rows].cpu().numpy(),
            "state": self.state[:rows].cpu().numpy(),
            "live": self.live[:rows],
            "dirty": self.live[:rows] & is_marked(self.dirty[:rows], UNPUBLISHED),
            "tombstones": np.array(self.tombstones, np.int64),
            "blocked": np.array(sorted(self._blocked), np.int64),
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
        self._blocked = set(state["blocked"].tolist()) if "blocked" in state else set()


def _map_backend(backend: str) -> str:
    return "reference" if backend == "reference" else "auto"
