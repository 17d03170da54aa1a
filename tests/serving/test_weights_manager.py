"""Versions held twice: each one complete and correct, whatever requests read meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.embedding import EmbeddingTable
from model.growing import keep_in
from model.tokens import ITEMS
from serving.answering.engine import Engine
from serving.answering.request import Request
from serving.model.tables import RowTable, TableSet
from serving.users.histories import Histories
from serving.versions.intake import VersionIntake
from serving.versions.manager import HeldVersion, WeightsManager
from tests.serving.world import World, manager_of, slice_of, versions
from trainer.versions.weights import Weights
from wire.errors import ConfigError, VersionError
from wire.weights import Snapshot, TableRows, Version


def same_as(held: HeldVersion | None, expected: Weights) -> None:
    """Assert that every row, key and name of the version equals that of the plain definition."""
    assert held is not None
    assert held.which == expected.which
    for name, table in expected.tables.items():
        live = np.flatnonzero(table.live)
        mine = held.tables[name]
        assert np.array_equal(mine.rows.numpy()[live], table.rows[live])
        assert np.array_equal(mine.live.numpy()[: len(table.live)], table.live & (np.arange(len(table.live)) > 0))
        assert np.array_equal(mine.lookup(table.ids[live[1:]]), live[1:])
    items = held.tables[ITEMS]
    assert np.array_equal(items.derived.numpy(), held.network.model.retrieval_table(items.rows).numpy())
    assert dict(held.names) == expected.names
    weights = {name: value.detach().numpy() for name, value in held.network.model.named_parameters()}
    assert all(np.array_equal(weights[name], value) for name, value in expected.dense.items())


def follow(manager: WeightsManager, version: Version, expected: Weights | None) -> Weights:
    assert manager.accepts(version.manifest)
    manager.stage(version)
    manager.swap()
    return expected.apply(version) if expected else Weights.from_base(version)


@pytest.mark.parametrize("settle", [False, True])
def test_every_version_is_what_its_base_and_deltas_say(settle: bool) -> None:
    manager, expected = WeightsManager(), None
    for version in versions(World(num_users=3), 9, base_every=4):
        expected = follow(manager, version, expected)
        same_as(manager.current, expected)
        if settle:
            manager.settle()
    assert manager.num_copies == 0


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("kind", ["base", "delta"])
def test_answers_go_on_after_the_item_of_the_last_row_is_gone(kind: str, copied: bool) -> None:
    world = World(num_users=3)
    manager, expected = WeightsManager(), None
    for version in versions(world, 2, base_every=100):
        expected = follow(manager, version, expected)
    items = world.learner.items
    last = items.num_rows - 1
    world.learner.remove_items(set(items.keys_of(np.array([last])).tolist()))
    expected = follow(manager, world.decoded(kind), expected)
    if copied:
        manager.discard()
        expected = follow(manager, world.decoded("delta"), expected)
    same_as(manager.current, expected)
    assert manager.current is not None
    assert len(expected.tables[ITEMS].live) == manager.current.tables[ITEMS].num_rows == last + 1
    past = slice_of(world.histories["u1"], -12, None)
    request = Request("u1", past, np.zeros(0, np.int64), int(past.timestamp_ms[-1]) + 7000, k=100, exclude_seen=False)
    (found,) = Engine(Histories(10**8)).answer(manager.current, [request])
    assert len(found.items) == manager.current.num_items > 0


def test_names_of_a_base_that_was_not_taken_replace_none() -> None:
    world = World(num_users=3)
    base, first, second = versions(world, 3, base_every=100)
    manager, expected = WeightsManager(), None
    for version in (base, first):
        expected = follow(manager, version, expected)
    manager.begin_anew()
    manager.stage(Version(base.manifest, replace(base.snapshot, names={})))
    manager.end_anew()
    expected = follow(manager, second, expected)
    same_as(manager.current, expected)


def test_several_versions_staged_before_one_swap_are_all_in_it() -> None:
    manager, expected = WeightsManager(), None
    for index, version in enumerate(versions(World(num_users=3), 9, base_every=5)):
        manager.stage(version)
        expected = expected.apply(version) if expected else Weights.from_base(version)
        if index % 3 == 2:
            manager.swap()
            same_as(manager.current, expected)


def test_a_request_keeps_its_version_through_swaps_however_long_it_takes() -> None:
    manager, all_versions = WeightsManager(swap_wait_s=0.01), list(versions(World(num_users=3), 6))
    follow(manager, all_versions[0], None)
    expected = Weights.from_base(all_versions[0])
    newest = expected
    with manager.hold() as held:
        for version in all_versions[1:]:
            newest = follow(manager, version, newest)
            same_as(held, expected)
            same_as(manager.current, newest)
    assert manager.num_copies == 1, "one copy, because the held side stays with its reader"


def test_swaps_that_did_not_wait_for_readers_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the count of readers, the idle side is overwritten while a request reads it."""
    manager, all_versions = WeightsManager(swap_wait_s=0.01), list(versions(World(num_users=3), 6))
    follow(manager, all_versions[0], None)
    expected = Weights.from_base(all_versions[0])
    monkeypatch.setattr(threading.Condition, "wait_for", lambda self, predicate, timeout=None: True)
    newest = expected
    with manager.hold() as held:
        for version in all_versions[1:]:
            newest = follow(manager, version, newest)
        with pytest.raises(AssertionError):
            same_as(held, expected)


def test_only_what_follows_is_accepted() -> None:
    world = World(num_users=2)
    base, delta, later = list(versions(world, 3))
    manager = WeightsManager()
    assert not manager.accepts(delta.manifest), "a delta without its base"
    follow(manager, base, None)
    assert not manager.accepts(later.manifest), "a gap"
    assert not manager.accepts(base.manifest), "the same again"
    follow(manager, delta, Weights.from_base(base))
    stale = next(versions(World(epoch=0), 1))
    assert not manager.accepts(stale.manifest), "a lower epoch"
    newer, of_newer = list(versions(World(num_users=2, epoch=2), 2))
    assert of_newer.manifest.onto_number == base.manifest.number
    fresh = WeightsManager()
    follow(fresh, base, None)
    assert not fresh.accepts(of_newer.manifest), "a delta onto another epoch's version of that number"
    assert manager.accepts(newer.manifest), "a base of a higher epoch, though its number is lower"


def test_a_version_that_does_not_fit_leaves_the_one_in_use() -> None:
    base, delta, _ = list(versions(World(num_users=2), 3))
    manager = WeightsManager()
    expected = follow(manager, base, None)
    delta.manifest.model_config["no_such_key"] = 1
    with pytest.raises(ConfigError):
        manager.stage(delta)
    same_as(manager.current, expected)
    del delta.manifest.model_config["no_such_key"]
    broken = TableRows(np.array([5]), np.array([1]), np.zeros((1, 3), np.float32), np.zeros(0, np.int64))
    with pytest.raises(VersionError, match="table items: expected rows of 17 numbers"):
        manager.stage(Version(delta.manifest, type(delta.snapshot)(delta.snapshot.dense, {ITEMS: broken}, {})))
    same_as(manager.current, expected)
    expected = follow(manager, delta, expected)
    same_as(manager.current, expected)
    assert expected.which == (1, 1)


def test_weights_that_say_something_else_here_than_to_their_trainer_are_refused() -> None:
    """A server whose kernels or weights differ serves nothing: here, one weight of the last layer differs."""
    base, _, _ = list(versions(World(num_users=2), 3))
    dense = {name: array.copy() for name, array in base.snapshot.dense.items()}
    dense["query_weight"] = np.roll(dense["query_weight"], 1, axis=0)
    with pytest.raises(VersionError, match="for fixed inputs the trainer's weights gave"):
        WeightsManager().stage(Version(base.manifest, replace(base.snapshot, dense=dense)))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("where", ["dense", "rows"])
def test_a_version_that_is_not_finite_leaves_the_one_in_use(value: float, where: str) -> None:
    base, delta, _ = list(versions(World(num_users=2), 3))
    manager = WeightsManager()
    expected = follow(manager, base, None)
    dense, items = dict(delta.snapshot.dense), delta.snapshot.tables[ITEMS]
    if where == "dense":
        dense = {name: np.full_like(array, value) for name, array in dense.items()}
    else:
        items = replace(items, rows=np.full_like(items.rows, value))
    bad = replace(delta.snapshot, dense=dense, tables={**delta.snapshot.tables, ITEMS: items})
    with pytest.raises(VersionError, match="finite"):
        manager.stage(Version(delta.manifest, bad))
    same_as(manager.current, expected)
    expected = follow(manager, delta, expected)
    same_as(manager.current, expected)


def refused(version: Version) -> Version:
    """The same with weights that are not finite."""
    dense = {name: np.full_like(array, np.nan) for name, array in version.snapshot.dense.items()}
    return Version(version.manifest, replace(version.snapshot, dense=dense))


@pytest.mark.parametrize("kind", ["base", "delta"])
def test_a_version_that_is_refused_leaves_those_that_were_staged_before_it(kind: str) -> None:
    world, manager = World(num_users=2), WeightsManager()
    base, delta = versions(world, 2)
    for version in (base, delta):
        manager.stage(version)
    with pytest.raises(VersionError, match="finite"):
        manager.stage(refused(world.decoded(kind)))
    manager.swap()
    same_as(manager.current, Weights.from_base(base).apply(delta))


UNFIT: dict[str, Callable[[Version], Version]] = {
    "more features than fit into any memory": lambda version: replace(
        version, manifest=msgspec.structs.replace(
            version.manifest, model_config={**version.manifest.model_config, "num_features": 10**12}
        ),
    ),
    "a memory without dimensions": lambda version: replace(
        version, snapshot=replace(version.snapshot, memory={**version.snapshot.memory, "clock": np.float64(0)}),
    ),
    **{
        f"the last {name} counted from the end": partial(
            lambda name, version: replace(
                version, snapshot=_changed(version.snapshot, name, lambda array: array * 0 - 1)
            ), name,
        )
        for name in ("items.row_index", "rates.item_index", "memory.row_index", "memory.neighbour_row")
    },
    **{
        f"{name} {how}": partial(
            lambda name, change, version: replace(version, snapshot=_changed(version.snapshot, name, change)),
            name, change,
        )
        for name, how, change in (
            ("memory.gain", "without buckets", lambda array: array[:0]),
            ("memory.gain", "of doubles", lambda array: array.astype(np.float64)),
            ("memory.group_seen", "without dimensions", lambda _: np.zeros((), np.float32)),
            ("memory.group_key", "left out", lambda _: None),
            ("memory.heat", "of fewer rows", lambda array: array[:, :-1]),
            ("memory.hour", "of other parts of the day", lambda array: array[:, :-1]),
            ("memory.weight", "of fewer neighbours", lambda array: array[:-1]),
            ("memory.num_neighbours", "of wider rows", lambda array: array + 5000),
            ("memory.neighbour_row", "of a larger memory", lambda array: array + 5000),
            ("memory.row_index", "of a larger memory", lambda array: array + 5000),
            ("memory.size", "of two numbers", lambda array: array[:2]),
            ("memory.pair_index", "of a larger table", lambda array: array + (1 << 18)),
            ("memory.pair_size", "of a table that cannot be", lambda array: array + 1),
            ("rates.item_VC", "of fewer kinds", lambda array: array[:, :-1]),
            ("rates.item_VC", "of fewer rows", lambda array: array[:-1]),
            ("rates.item_index", "left out", lambda _: None),
            ("rates.total_C", "of single precision", lambda array: array.astype(np.float32)),
            ("items.rows", "of another width", lambda array: array[:, :-1]),
            ("items.rows", "of more rows than keys", lambda array: np.concatenate([array, array])),
            ("items.ids", "of more keys than rows", lambda array: np.append(array, array)),
            ("items.tombstones", "without dimensions", lambda _: np.zeros((), np.int64)),
        )
    },
}  # fmt: skip
"""What another build, or nobody, would publish."""


def _changed(snapshot: Snapshot, where: str, change: Callable[[NDArray[Any]], NDArray[Any] | None]) -> Snapshot:
    """The snapshot with another array at ``where``, or without it."""
    part, name = where.split(".")
    if part == ITEMS:
        items = snapshot.tables[ITEMS]
        return replace(
            snapshot, tables={**snapshot.tables, ITEMS: replace(items, **{name: change(getattr(items, name))})}
        )
    arrays = getattr(snapshot, part)
    changed = {**arrays, name: change(arrays[name])}
    return replace(snapshot, **{part: {each: array for each, array in changed.items() if array is not None}})


@pytest.mark.parametrize("kind", ["base", "delta"])
@pytest.mark.parametrize("how", UNFIT)
def test_a_version_of_another_build_is_refused_and_the_ones_before_it_go_on(how: str, kind: str) -> None:
    world = World(num_users=2)
    intake = VersionIntake(manager_of(next(versions(world, 1))))
    current = intake.manager.current
    world.learn()
    good = world.decoded("delta")
    assert intake.take(good, is_pinned=False)
    world.learn()
    assert intake.take(UNFIT[how](world.decoded(kind)), is_pinned=False)
    assert intake.counters.num_refused == 1
    assert intake.manager.current is current
    assert intake.manager.staged is good.manifest
    assert intake.swap()
    assert intake.take(world.decoded("base"), is_pinned=False)
    assert intake.swap()


@pytest.fixture(params=["memory", "files"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    keep_in(str(tmp_path) if request.param == "files" else "")
    yield str(request.param)
    keep_in("")


@pytest.mark.usefixtures("place")
@given(st.lists(st.tuples(st.lists(st.integers(1, 12), max_size=6), st.booleans(), st.booleans()), max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_table_equals_the_trainers_through_arrivals_and_evictions(rounds: list[tuple[list[int], bool, bool]]) -> None:
    trainer = EmbeddingTable(3, init_std=0.1, seed=1, salt=1, backend="reference")
    server = TableSet(trainer.weight.device, "reference")
    for step, (keys, evict, is_base) in enumerate([([], False, True), *rounds]):
        trainer.insert(np.array(keys, np.int64), step, step)
        if evict:
            trainer.evict(step)
        server.tables = {} if is_base else server.tables
        server.apply_rows({"items": TableRows(*trainer.changes(everything=is_base))}, {})
        trainer.mark_published()
        every_key = np.arange(14)
        assert np.array_equal(server["items"].lookup(every_key), trainer.lookup(every_key))
        rows = trainer.live_rows()
        assert np.array_equal(server["items"].rows[rows], trainer.weight[rows])
        assert np.array_equal(server["items"].keys_of(rows), trainer.keys_of(rows))
        assert np.array_equal(np.flatnonzero(server["items"].live.numpy()), rows)
        assert np.array_equal(server.copy({})["items"].lookup(every_key), trainer.lookup(every_key))
    assert isinstance(server["items"], RowTable)


def test_a_server_has_no_room_for_what_only_a_trainer_keeps() -> None:
    manager = WeightsManager()
    world = World(num_users=3)
    for version in versions(world, 2):
        manager.stage(version)
        manager.swap()
        assert manager.current is not None
        assert manager.current.tables.rates is not None
        assert len(manager.current.tables.rates.kept) == 1
    assert len(world.learner.rates.kept) > 1000, "as a trainer does"
