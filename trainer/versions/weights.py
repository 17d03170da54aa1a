"""A version's weights as a reader holds them: a base with the deltas after it applied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
from model.memory import Memory
from model.rates import Rates
from model.tokens import ITEMS
from wire.assembler import VersionAssembler
from wire.errors import VersionError
from wire.weights import Manifest, TableRows, Version


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A reader's whole table: ``ids`` (V,) int64, ``rows`` (V, D), ``live_V`` bool; row 0 is the shared cold row."""

    ids: NDArray[np.int64]
    rows: NDArray[np.floating[Any]]
    live: NDArray[np.bool_]

    @staticmethod
    def of(rows: TableRows) -> Table:
        """A table of only these rows."""
        nothing = np.zeros((0, rows.rows.shape[1]), rows.rows.dtype)
        return Table(np.zeros(0, np.int64), nothing, np.zeros(0, np.bool_)).apply(rows)

    def apply(self, change: TableRows) -> Table:
        """The table after a change; ``self`` stays as it is."""
        num_rows = max(len(self.ids), int(change.row_index.max(initial=-1)) + 1)
        ids, rows = np.zeros(num_rows, np.int64), np.zeros((num_rows, change.rows.shape[1]), change.rows.dtype)
        live = np.zeros(num_rows, np.bool_)
        ids[: len(self.ids)], rows[: len(self.ids)], live[: len(self.ids)] = self.ids, self.rows, self.live
        if len(change.tombstones):
            gone = np.isin(ids, change.tombstones) & live
            live[gone], rows[gone], ids[gone] = False, 0, 0
        ids[change.row_index], rows[change.row_index], live[change.row_index] = change.ids, change.rows, True
        return Table(ids, rows, live)

    def lengthened(self, num_rows: int) -> Table:
        """The table with at least ``num_rows`` rows; further ones belong to no key."""
        more = max(0, num_rows - len(self.ids))
        ids, live = np.append(self.ids, np.zeros(more, np.int64)), np.append(self.live, np.zeros(more, np.bool_))
        return Table(ids, np.pad(self.rows, ((0, more), (0, 0))), live) if more else self


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """All weights of one version, as a reader holds them."""

    manifest: Manifest
    dense: dict[str, NDArray[np.floating[Any]]]
    tables: dict[str, Table]
    names: dict[int, str | int]
    memory: Memory
    rates: Rates

    @property
    def which(self) -> tuple[int, int]:
        """(epoch, number)."""
        return self.manifest.epoch, self.manifest.number

    @staticmethod
    def from_base(version: Version) -> Weights:
        """The weights of a base version."""
        if version.manifest.kind != "base":
            raise VersionError(
                f"version {_name(version.manifest)}: expected a base, got a {version.manifest.kind}; "
                "read the topic from the manifest's base_offset"
            )
        changes = version.snapshot.tables.items()
        config = ModelConfig.from_dict(version.manifest.model_config)
        memory, rates = Memory(config), Rates(config)
        memory.apply(version.snapshot.memory, is_base=True)
        rates.apply(version.snapshot.rates, is_base=True)
        return Weights(
            version.manifest,
            version.snapshot.dense,
            _with_all_rows({name: Table.of(rows) for name, rows in changes}, memory),
            version.snapshot.names,
            memory,
            rates,
        )

    def accepts(self, version: Version) -> bool:
        """Whether `apply` can take the version: a newer base, or the delta onto exactly this version."""
        return version.manifest.follows(self.manifest)

    def apply(self, version: Version) -> Weights:
        """The weights after a newer version; ``self`` stays as it is. Raises `VersionError` if it does not follow."""
        if not self.accepts(version):
            raise VersionError(
                f"version {_name(version.manifest)} ({version.manifest.kind} onto {version.manifest.onto_number})"
                f" does not follow {_name(self.manifest)}; wait for the next base"
            )
        if version.manifest.kind == "base":
            return Weights.from_base(version)
        tables = {name: self.tables[name].apply(rows) for name, rows in version.snapshot.tables.items()}
        memory, rates = self.memory.copy(), self.rates.copy()
        memory.apply(version.snapshot.memory, is_base=False)
        rates.apply(version.snapshot.rates, is_base=False)
        names = {**self.names, **version.snapshot.names}
        return Weights(
            version.manifest, version.snapshot.dense, _with_all_rows(tables, memory), names, memory, rates
        )  # fmt: skip


def newest_weights(
    records: Iterable[Any], until: tuple[int, int] | None = None
) -> tuple[Weights | None, list[Manifest]]:
    """Records of the weights topic, from a base on → the newest weights in them, and the valid manifests; both up to
    the version ``until``, if it is given and found."""
    assembler, weights, manifests = VersionAssembler(), None, list[Manifest]()
    for record in records:
        version = assembler.feed(record.key, record.headers, record.value)
        if version is None:
            continue
        manifests.append(version.manifest)
        if weights is not None and weights.accepts(version):
            weights = weights.apply(version)
        elif version.manifest.kind == "base":
            weights = Weights.from_base(version)
        if version.manifest.which == until:
            break
    return weights, manifests


def _with_all_rows(tables: dict[str, Table], memory: Memory) -> dict[str, Table]:
    """Tables with an item row for each of the memory's: a version has no row of an item that is gone, the last too."""
    return {**tables, ITEMS: tables[ITEMS].lengthened(memory.num_rows)} if ITEMS in tables else tables


def _name(manifest: Manifest) -> str:
    return f"{manifest.epoch}/{manifest.number}"
