"""A learner as arrays, and back: all of it for a checkpoint, what servers need for a version."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from kernels.memory.ranking_state import MemoryRanking
from model.embedding import EmbeddingTable
from trainer.checkpoint.folder import flatten, part_of
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.recorded import difference
from trainer.copies.regions import count_columns
from trainer.copies.rows import Arrays
from trainer.errors import CheckpointError
from trainer.learner.step import Learner
from trainer.versions.weights import Table, Weights
from wire.weights import Snapshot, TableRows

_SCALARS = ("num_steps", "num_interactions", "num_feedback", "newest_event_ms", "newest_record_ms")


def learner_arrays(learner: Learner) -> Arrays:
    """The whole state of a learner, except its configuration."""
    parts: dict[str, dict[str, Any]] = {
        "optimiser": learner.optimiser.state_dict(),
        "frequency": learner.frequency.state_dict(),
        "metrics": learner.metrics.state_dict(),
        "popularity": {"count": learner.popularity.count_V},
        "rates": learner.rates.state_dict(),
        "memory": learner.memory.state_dict(),
        "histories": learner.histories.state_dict(),
        "learner": {name: np.array([getattr(learner, name)], np.int64) for name in _SCALARS},
        "names": {"all": _pack(learner.names.all), "unpublished": _pack(learner.names.unpublished)},
        "past_names": learner.names.past.state_dict(),
        "ranking": learner.ranking_state(),
        **{name: table.state_dict() for name, table in learner.tables.items()},
    }
    return flatten(parts)


def small_arrays(learner: Learner) -> Arrays:
    """A copy of what belongs to no region (`trainer.copies.regions`), and how many rows each region has.

    With the rows, it is all of `learner_arrays` (`trainer.copies.rows.assembled`).
    """
    memory, counts = learner.memory, count_columns(learner)
    parts: dict[str, dict[str, Any]] = {
        "optimiser": learner.optimiser.state_dict(),
        "frequency": {"scalars": learner.frequency.state_dict()["scalars"]},
        "metrics": learner.metrics.state_dict(),
        "rates": learner.rates.small(),
        "memory": memory.learned(),
        "histories": learner.histories.small(),
        "learner": {name: np.array([getattr(learner, name)], np.int64) for name in _SCALARS},
        "ranking": learner.ranking_state(),
        "past_names": learner.names.past.state_dict(),
        "size": {
            "memory": np.array([memory.num_rows]),
            "memory_pairs": np.array([memory.arrays.num_pairs]),
            "kept": np.array([learner.rates.kept.rows.num_used]),
            **{
                region: np.array([len(columns[name]) for name in sorted(columns)]) for region, columns in counts.items()
            },
            **{name: np.array([table.num_rows]) for name, table in learner.tables.items()},
        },
        **{name: _small_of_table(table) for name, table in learner.tables.items()},
    }
    return {name: np.array(array) for name, array in flatten(parts).items()}


def _small_of_table(table: EmbeddingTable) -> dict[str, Any]:
    ids, counts, last_seen = table.map.pending()
    return {
        "tombstones": np.array(table.tombstones, np.int64),
        "blocked": table.blocked.array,
        "map.pending_ids": ids, "map.pending_counts": counts, "map.pending_last_seen_ms": last_seen,
        "map.num_rows": np.array([table.map.num_rows], np.int64),
        "map.admit_after": np.array([table.map.admit_after], np.int64),
    }  # fmt: skip


def restore_learner(learner: Learner, checkpoint: Checkpoint) -> None:
    """Restore the state at the checkpoint into a new learner of the same configuration. Raises `CheckpointError`."""
    _check_config(learner, checkpoint.meta)
    arrays = checkpoint.arrays
    _check_rates(arrays)
    learner.optimiser.load_state_dict(part_of(arrays, "optimiser"))
    learner.frequency.load_state_dict(part_of(arrays, "frequency"))
    learner.metrics.load_state_dict(part_of(arrays, "metrics"))
    learner.popularity.load(arrays["popularity.count"])
    learner.rates.load_state_dict(part_of(arrays, "rates"))
    learner.memory.load_state_dict(part_of(arrays, "memory"))
    learner.histories.load_state_dict(part_of(arrays, "histories"))
    ranked = part_of(arrays, "ranking")
    if not MemoryRanking.is_kept(ranked, learner.memory.arrays):  # of an earlier build: that choice gets no ranks
        ranked = {}
    learner.memory_pass.ranking.load_state_dict(ranked)
    learner.scoring.evaluator.load_state_dict(ranked)
    for name in _SCALARS:
        setattr(learner, name, int(arrays[f"learner.{name}"][0]))
    learner.names.all = _unpack(arrays["names.all"])
    learner.names.unpublished = _unpack(arrays["names.unpublished"])
    learner.names.past.load_state_dict(part_of(arrays, "past_names"))
    for name, table in learner.tables.items():
        table.load_state_dict(part_of(arrays, name))


def restore_published(learner: Learner, weights: Weights) -> None:
    """Make a new learner predict as a published version does. What is not published starts from scratch: the
    optimisers' state, frequency counts, the popularity baseline, and metrics but for those of values, whose mean is
    predicted."""
    manifest = weights.manifest
    for name, parameter in learner.model.named_parameters():
        parameter.data.copy_(torch.tensor(weights.dense[name]))
    if learner.model_config.predict_value and "values" in manifest.metrics:
        learner.metrics.values.resume(manifest.metrics["values"], float(learner.model.value_mean.detach()))
    for name, table in learner.tables.items():
        table.load_state_dict(_table_state(weights.tables[name], table.map.admit_after, manifest.newest_event_ms))
    learner.memory.adopt(weights.memory)
    learner.rates.adopt(weights.rates)
    learner.names.all, learner.names.unpublished = dict(weights.names), {}
    learner.num_steps, learner.num_interactions = manifest.next_step, manifest.num_interactions
    learner.num_feedback = manifest.num_feedback
    learner.newest_event_ms, learner.newest_record_ms = manifest.newest_event_ms, manifest.newest_record_ms
    if (waiting := learner.histories.waiting) is not None:
        waiting.resume(manifest.newest_record_ms)


def _table_state(table: Table, admit_after: int, seen_ms: int) -> dict[str, Any]:
    """A published table as the state of an `EmbeddingTable`, with every key last seen at ``seen_ms``."""
    rows = np.flatnonzero(table.live)[1:]  # without the cold row
    none = np.zeros(0, np.int64)
    return {
        "weight": table.rows.astype(np.float32), "state": np.zeros(len(table.live), np.float32), "live": table.live,
        "dirty": np.zeros(len(table.live), np.bool_), "tombstones": none,
        "map.rows": rows - 1, "map.ids": table.ids[rows], "map.last_seen_ms": np.full(len(rows), seen_ms, np.int64),
        "map.pending_ids": none, "map.pending_counts": none, "map.pending_last_seen_ms": none,
        "map.num_rows": np.array([len(table.live) - 1], np.int64), "map.admit_after": np.array([admit_after], np.int64),
    }  # fmt: skip


def _check_rates(arrays: Arrays) -> None:
    if "rates.kept_count" not in arrays:
        raise CheckpointError(
            "rates: expected what the odds keep of the newest interactions (rates.kept_count), got a checkpoint of a "
            "build before that; use the build that wrote it, or name an empty trainer.checkpoint_dir to train anew"
        )


def _check_config(learner: Learner, meta: dict[str, Any]) -> None:
    found = difference(learner.model_config, learner.config, meta["model"], meta["trainer"])
    if found is not None:
        name, theirs, ours = found
        raise CheckpointError(
            f"{name}: the checkpoint was trained with {theirs!r}, the configuration now says {ours!r}; restore it, or "
            "name an empty trainer.checkpoint_dir to train from scratch"
        )


def _pack(names: dict[int, str | int]) -> Any:
    return np.frombuffer(json.dumps(list(names.items()), ensure_ascii=False).encode(), np.uint8)


def _unpack(packed: Any) -> dict[int, str | int]:
    return dict(json.loads(packed.tobytes()))


def weights_snapshot(learner: Learner, *, everything: bool) -> Snapshot:
    """What a version carries: dense weights, and all rows and names, or those changed since the last call.

    The caller must deliver it: from here on, changes count towards the next version.
    """
    dense = {name: parameter.detach().cpu().numpy().copy() for name, parameter in learner.model.named_parameters()}
    tables = {}
    for name, table in learner.tables.items():
        keys, rows, weights, tombstones = table.changes(everything=everything)
        tables[name] = TableRows(keys, rows, weights, tombstones)
        table.mark_published()
    memory = learner.memory.changes(everything=everything)
    learner.memory.mark_published()
    rates = learner.rates.changes(everything=everything)
    learner.rates.mark_published()
    names = dict(learner.names.all if everything else learner.names.unpublished)
    learner.names.unpublished = {}
    return Snapshot(dense, tables, names, memory, rates)
