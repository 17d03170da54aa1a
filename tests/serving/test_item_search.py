"""The best items looked for by lists: which are found, what is always found, and what happens as versions come."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from serving.answering.engine import Engine
from serving.answering.request import Request, Result
from serving.answering.similar import similar_items
from serving.config import ServingConfig
from serving.http.readings import readings_of
from serving.search import index as item_search
from serving.search import keeper as search_keeper
from serving.search import lists as item_lists
from serving.search.index import ItemSearch, best_standing, directions, search_of
from serving.search.keeper import SearchKeeper
from serving.search.lists import ItemLists, find_centres, num_lists_for
from serving.service import Service
from serving.users.histories import Histories
from serving.versions.manager import HeldVersion, WeightsManager
from tests.serving.world import START_MS, World, example, interactions, slice_of
from wire.errors import ConfigError
from wire.example import Interactions
from wire.hashing import item_hash
from wire.weights import Version, decode_blob

NUM_ITEMS, ALL = 600, 10**6
NONE = np.zeros(0, np.int64)
NEW = 100_000


class Server:
    """A learner's versions in service, and two engines: one that searches, one that does not."""

    def __init__(self, num_probes: int = ALL, *, compare_s: float = 0.0, least_items: int = 1) -> None:
        self.world = World(num_users=40)
        rng = np.random.default_rng(5)
        self.world.histories = {f"u{i}": interactions(rng, 60, NUM_ITEMS) for i in range(40)}
        self.manager = WeightsManager()
        self.search = ItemSearch(num_probes, least_items=least_items, least_recall=0.9, compare_s=compare_s)
        self.manager.before_swap.append(self.note)
        self.keeper = SearchKeeper(self.search, self.manager)
        self.exact, self.engine = Engine(Histories(10**8)), Engine(Histories(10**8), search=self.search)
        self.tells = True
        self.world.learn()
        self.swap("base")

    def note(self, version: HeldVersion):
        if self.tells:
            self.search.note(version)
        return lambda: None

    def stage(self, kind: str = "delta", **changed: object) -> None:
        manifest, blob = self.world.version(kind)
        self.manager.stage(Version(msgspec.structs.replace(manifest, **changed), decode_blob(blob)))

    def swap(self, kind: str = "delta", **changed: object) -> None:
        self.stage(kind, **changed)
        self.manager.swap()

    def requests(self, **more: object) -> list[Request]:
        asked = [Request(None, slice_of(past, -12, None), NONE, int(past.timestamp_ms[-1]) + 7000, k=20)
                 for past in self.world.histories.values()]  # fmt: skip
        cold = Request(None, slice_of(next(iter(self.world.histories.values())), 0, 0), NONE, START_MS, k=20)
        return [replace(each, **more) for each in [*asked, cold]]

    def both(self, **more: object) -> tuple[list[Result], list[Result]]:
        with self.manager.hold() as version:
            assert version is not None
            asked = self.requests(**more)
            return self.engine.answer(version, asked), self.exact.answer(version, asked)

    def learn_new_item(self) -> int:
        """Everybody chooses an item that nobody knew; its hash."""
        new = item_hash(NEW)
        steps = [
            example(user, chosen(new, int(past.timestamp_ms[-1]) + 1000 * turn), num_new=1)
            for turn in range(3) for user, past in self.world.histories.items()
        ]  # fmt: skip
        self.world.learner.step(steps)
        return new


def chosen(item: int, time_ms: int) -> Interactions:
    return Interactions(np.array([item]), np.array([7], np.uint32), np.array([time_ms]), np.zeros(1, np.int64),
                        np.full(1, np.nan, np.float32), np.zeros((1, 0), np.int64))  # fmt: skip


def assert_same(found: list[Result], expected: list[Result]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.items, theirs.items)
        np.testing.assert_array_equal(ours.scores, theirs.scores)


def recall_of(found: list[Result], exact: list[Result]) -> float:
    return sum(np.isin(e.items, f.items).sum() for f, e in zip(found, exact, strict=True)) / sum(
        len(each.items) for each in exact
    )


@pytest.fixture(autouse=True)
def few_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a catalogue this small the best of standing would be most of it."""
    monkeypatch.setattr("serving.search.index.BEST_STANDING", 8)


@pytest.fixture
def server() -> Server:
    server = Server()
    assert server.keeper.renew()
    return server


@pytest.mark.parametrize(
    "more",
    [{}, {"k": 100}, {"exclude_seen": False}, {"deny": np.array([item_hash(i) for i in range(1, 300)])},
     {"allow": np.array([item_hash(i) for i in range(1, 60)])}, {"diversity": 0.5}, {"k": 0}],
)  # fmt: skip
def test_where_all_lists_are_probed_answers_are_the_exact_ones(server: Server, more: dict[str, object]) -> None:
    assert_same(*server.both(**more))
    assert server.search.num_answers == (0 if "allow" in more or more.get("k") == 0 else 41)


def test_with_few_lists_most_are_found_and_the_rest_is_measured() -> None:
    server = Server(num_probes=2, compare_s=1e-9)
    assert server.search.recall is None
    assert server.keeper.renew()
    found, exact = server.both()
    recall = recall_of(found, exact)
    assert 0.4 < recall < 1.0
    for _ in range(5):
        server.both()
        server.keeper.compare()
    first = np.isin(exact[0].items, found[0].items).mean()  # of those answered together it is one that is compared
    assert (server.search.num_compared, server.search.recall) == (5, pytest.approx(first))


@pytest.mark.parametrize(("compare_s", "num"), [(0.0, 0), (1e6, 1), (1e-9, 3)])
def test_answers_are_compared_only_so_often(compare_s: float, num: int) -> None:
    search = ItemSearch(1, least_items=1, least_recall=0.9, compare_s=compare_s)
    taken = []
    for _ in range(3):
        search.ask(((1, 1), lambda _: (1, 1)))
        taken.append(search.take_asked())
    assert sum(each is not None for each in taken) == num


def test_an_answer_of_another_version_is_not_compared() -> None:
    server = Server(num_probes=2, compare_s=1e-9)
    server.keeper.renew()
    server.both()
    server.swap()
    server.keeper.compare()
    assert server.search.num_compared == 0


def test_a_new_item_is_found_at_once() -> None:
    server = Server(num_probes=1)
    server.keeper.renew()
    new = server.learn_new_item()
    server.swap()
    found, exact = server.both(exclude_seen=False)
    assert all(new in each.items for each in exact), "everybody chose it"
    assert all(new in each.items for each in found)


def test_a_search_that_is_not_told_of_versions_does_not_find_a_new_item() -> None:
    """What the test before relies on: the item is found because it has changed, and not by luck."""
    server = Server(num_probes=1)
    server.keeper.renew()
    server.tells, new = False, server.learn_new_item()
    server.swap()
    found, _ = server.both(exclude_seen=False)
    assert not all(new in each.items for each in found)


def test_an_item_that_was_removed_is_never_found() -> None:
    server = Server(num_probes=3)
    server.keeper.renew()
    gone = [int(item) for item in server.both()[0][0].items[:5]]
    server.world.learner.remove_items(gone)
    server.swap()
    assert server.search.lists is not None
    for results in server.both():
        assert not any(np.isin(gone, each.items).any() for each in results)
    server.keeper._made_at = -1e9
    assert server.keeper.renew()
    assert not np.isin(gone, server.manager.current.tables["items"].keys_of(server.search.lists.row_n)).any()


def test_what_changes_while_lists_are_made_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    server, assign = Server(num_probes=1), search_keeper.assign

    def assign_late(*arguments: object) -> None:
        assign(*arguments)
        server.new = server.learn_new_item()
        server.swap()

    monkeypatch.setattr(search_keeper, "assign", assign_late)
    assert server.keeper.renew()
    row = server.manager.current.tables["items"].lookup(np.array([server.new]))
    assert row in server.search.changed
    found, _ = server.both(exclude_seen=False)
    assert all(server.new in each.items for each in found)


def test_lists_of_a_table_that_was_replaced_meanwhile_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    server, assign = Server(), search_keeper.assign

    def replace_late(*arguments: object) -> None:
        assign(*arguments)
        server.swap("base", model_id="another")

    monkeypatch.setattr(search_keeper, "assign", replace_late)
    assert not server.keeper.renew()
    assert server.search.lists is None
    assert_same(*server.both())
    assert server.search.num_answers == 0
    monkeypatch.setattr(search_keeper, "assign", assign)
    assert server.keeper.renew()
    assert_same(*server.both())


def test_a_version_in_use_before_the_table_was_replaced_is_answered_exactly() -> None:
    server = Server(num_probes=1)
    with server.manager.hold() as old:
        server.swap("base", model_id="another")
        assert server.keeper.renew()
        assert server.search.candidates(old, old.network.model.retrieval_query(old.network.model.start_M[None])) is None


def test_a_base_of_the_same_rows_keeps_the_lists(server: Server) -> None:
    lists = server.search.lists
    new = server.learn_new_item()
    server.swap("base")
    assert server.search.lists is lists
    assert server.manager.current.tables["items"].lookup(np.array([new])) in server.search.changed
    assert_same(*server.both())


def test_a_base_that_gives_rows_other_keys_has_them_looked_at(server: Server) -> None:
    learner, lists = server.world.learner, server.search.lists
    gone = int(learner.items.keys_of(np.array([9]))[0])
    learner.remove_items([gone])
    new = server.learn_new_item()
    assert learner.items.lookup(np.array([new])) == [9], "the new item has the row of the old one"
    server.swap("base")
    assert server.search.lists is lists
    assert 9 in server.search.changed


def test_a_base_most_of_whose_rows_have_other_keys_drops_the_lists(server: Server) -> None:
    model_id = server.manager.current.manifest.model_id
    rng = np.random.default_rng(6)
    server.world = World(num_users=40, number=5)
    server.world.histories = {f"u{i}": interactions(rng, 60, NUM_ITEMS) for i in range(40)}
    server.world.learn()
    server.swap("base", model_id=model_id)
    assert server.manager.current.manifest.number > 5
    assert server.search.lists is None
    assert_same(*server.both())


def test_rows_that_are_counted_and_in_no_list_are_looked_at(server: Server) -> None:
    """An item's weights may be older than its first choice."""
    list_V, version = server.search.lists.list_V, server.manager.current
    unlisted, listed, later = int(np.flatnonzero(list_V < 0)[-1]), int(np.flatnonzero(list_V >= 0)[0]), len(list_V)
    server.search.note(
        replace(version, changed_rows=NONE, counted_rows=np.array(sorted((unlisted, listed, later)), np.int64))
    )
    assert server.search.changed.tolist() == [unlisted, later]


def test_a_version_in_use_is_asked_for_none_of_the_rows_that_came_after_it(server: Server) -> None:
    with server.manager.hold() as old:
        assert old is not None
        server.learn_new_item()
        server.swap()
        (row,) = server.search.changed[server.search.changed >= old.memory.num_rows]
        query_RD = old.network.model.retrieval_query(old.network.model.start_M[None])
        candidates = server.search.candidates(old, query_RD)
        assert candidates is not None
        assert max(candidates.shared_rows) < old.memory.num_rows
        assert row not in server.search.rows_near(old, 7)
        current = server.manager.current
        assert row in server.search.candidates(current, query_RD).shared_rows
        assert row in server.search.rows_near(current, 7)
        server.keeper._made_at = -1e9
        assert server.keeper.renew(), "lists of more rows than it has"
        assert server.search.candidates(old, query_RD) is None
        assert server.search.rows_near(old, 7) is None
        assert server.search.candidates(current, query_RD) is not None


def test_an_item_that_has_changed_is_similar_at_once() -> None:
    server = Server(num_probes=1)
    server.keeper.renew()
    new = server.learn_new_item()
    server.swap()
    current = server.manager.current
    row = int(current.tables["items"].lookup(np.array([new]))[0])
    assert row in server.search.rows_near(current, int(server.search.lists.row_n[0]))


def test_lists_are_not_begun_between_the_note_of_a_version_and_its_swap(server: Server) -> None:
    current = server.manager.current
    server.manager.before_swap.append(lambda _: attempts.append(server.search.begin(current)) or (lambda: None))
    attempts: list[bool] = []
    server.swap()
    assert attempts == [False]
    assert server.search.begin(server.manager.current)


def test_changed_rows_are_put_into_lists(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    new = server.learn_new_item()
    server.swap()
    assert not server.keeper.renew(), "too few"
    monkeypatch.setattr(search_keeper, "MOST_CHANGED", 0)
    before = server.search.lists
    assert server.keeper.renew()
    assert (server.search.num_changed, server.search.num_builds) == (0, 2)
    row = int(server.manager.current.tables["items"].lookup(np.array([new]))[0])
    assert server.search.lists.list_V[row] >= 0
    assert server.search.lists.centre_LD is before.centre_LD
    assert_same(*server.both())


def test_a_row_that_has_turned_is_put_into_another_list(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    lists, items = server.search.lists, server.world.learner.items
    row = int(lists.row_n[0])
    items.weight.data[row, :-1] = -lists.centre_LD[lists.list_V[row]]
    items.dirty[row] = True
    server.swap()
    assert row in server.search.changed
    monkeypatch.setattr(search_keeper, "MOST_CHANGED", 0)
    assert server.keeper.renew()
    assert server.search.lists.list_V[row] != lists.list_V[row]


def test_denied_and_seen_items_leave_the_answer_as_long_as_the_exact_one() -> None:
    server = Server(num_probes=1)
    server.keeper.renew()
    deny = np.array([item_hash(item) for item in range(1, NUM_ITEMS - 30)])
    found, exact = server.both(deny=deny, k=20)
    assert [len(each.items) for each in found] == [len(each.items) for each in exact]
    assert not any(np.isin(each.items, deny).any() for each in found)


def test_small_catalogues_are_answered_exactly() -> None:
    server = Server(num_probes=1)
    assert server.keeper.renew()
    server.search.least_items = NUM_ITEMS + 1
    assert_same(*server.both())
    assert server.search.num_answers == 0
    server.keeper._made_at = -1e9
    assert not server.keeper.renew()


def test_the_same_table_gives_the_same_lists() -> None:
    one, other = Server(), Server()
    for server in (one, other):
        server.keeper.renew()
    np.testing.assert_array_equal(one.search.lists.list_V, other.search.lists.list_V)
    np.testing.assert_array_equal(one.search.lists.row_n, other.search.lists.row_n)
    one.search.num_probes = 2
    assert_same(one.both()[0], one.both()[0])


def test_similar_items_are_those_of_the_whole_table_where_all_lists_are_probed(server: Server) -> None:
    version = server.manager.current
    row, removed = 7, [int(version.tables["items"].keys_of(np.array([9]))[0])]
    for k in (5, 40, 2 * NUM_ITEMS):
        expected = similar_items(version, row, k, removed)
        found = similar_items(version, row, k, removed, server.search)
        assert [item for item, _ in found] == [item for item, _ in expected]
        assert [cosine for _, cosine in found] == pytest.approx([cosine for _, cosine in expected], abs=1e-6)
    server.search.num_probes = 1
    near = similar_items(version, row, 3, removed, server.search)
    assert len(near) == 3
    assert similar_items(version, row, 300, removed, server.search) == similar_items(version, row, 300, removed)
    assert near[0][1] <= similar_items(version, row, 1, removed)[0][1] + 1e-6


def test_items_similar_to_one_that_is_alone_in_its_list_are_looked_for_everywhere() -> None:
    server, row = Server(num_probes=1), 7
    server.keeper.renew()
    version, lists = server.manager.current, server.search.lists
    (closest,) = lists.probes(version.tables["items"].derived[row : row + 1, :-1].float(), 1)[0]
    list_V = np.where(lists.list_V == closest, (closest + 1) % lists.num_lists, lists.list_V).astype(np.int32)
    list_V[row] = closest
    assert server.search.begin(version)
    assert server.search.finish(ItemLists.of(lists.centre_LD, list_V), NONE.astype(np.int32), server.search.line_since)
    assert server.search.rows_near(version, row).tolist() == [row]
    assert similar_items(version, row, 3, [], server.search) == similar_items(version, row, 3, [])


def test_lists_that_cannot_be_made_leave_answers_exact(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server, find_centres = Server(compare_s=1e-9), search_keeper.find_centres

    def fail(*_: object) -> None:
        raise MemoryError("no room for centres")

    monkeypatch.setattr(search_keeper, "find_centres", fail)
    monkeypatch.setattr(search_keeper, "RETRY_S", 0.05)
    monkeypatch.setattr(search_keeper, "LOOK_S", 0.01)
    server.keeper.start()
    try:
        wait_until(lambda: server.search.num_failures >= 2)
        assert "no room for centres" in caplog.text
        assert "trying again in 0.05 seconds" in caplog.text
        assert_same(*server.both())
        assert server.search.num_answers == 0
        monkeypatch.setattr(search_keeper, "find_centres", find_centres)
        wait_until(lambda: server.search.lists is not None)
        assert_same(*server.both())
        assert server.search.num_answers > 0
        wait_until(lambda: server.search.num_compared > 0)
    finally:
        server.keeper.stop()
        server.keeper.join(10)
    assert not server.keeper.is_alive()
    assert server.search.recall == 1.0


def wait_until(is_true) -> None:
    until = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_low_recall_is_logged_once_and_has_the_centres_made_anew(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(49):
        server.search.compared(5, 10)
    assert not server.search.is_low, "too few to say"
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            server.search.compared(5, 10)
    assert server.search.is_low
    (said,) = [each.getMessage() for each in caplog.records]
    assert said == (
        "search: the last 50 compared answers had 0.500 of the exact ones' items, and serving.search_recall is 0.900: "
        "the lists are made anew; if that does not help, raise serving.search_probes (1000000), or set "
        'serving.search = "exact"'
    )
    assert not server.keeper.renew(), "they were made just now"
    monkeypatch.setattr(search_keeper, "CENTRES_S", 0.0)
    before = server.search.lists
    assert server.keeper.renew()
    assert server.search.lists.centre_LD is not before.centre_LD
    for _ in range(200):
        server.search.compared(10, 10)
    assert not server.search.is_low


def test_a_low_recall_is_no_longer_told_once_there_is_another_table(server: Server) -> None:
    for _ in range(50):
        server.search.compared(5, 10)
    assert server.search.readings()["headrace_search_recall_low"] == 1
    server.swap("base", model_id="another")
    assert (server.search.recall, server.search.is_low) == (None, False)
    assert server.search.readings()["headrace_search_recall_low"] == 0


def test_a_recall_is_unknown_once_nothing_is_compared(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(50):
        server.search.compared(5, 10)
    assert server.search.is_low
    later_s = time.monotonic() + 601
    monkeypatch.setattr(item_search.time, "monotonic", lambda: later_s)
    readings = server.search.readings()
    assert (readings.get("headrace_search_recall"), readings["headrace_search_recall_low"]) == (None, 0)
    server.search.compared(10, 10)
    assert (server.search.recall, server.search.is_low) == (1.0, False), "of the present lists alone"


def test_readings_say_what_is_searched_and_how_well() -> None:
    server = Server(num_probes=2)
    assert server.search.readings()["headrace_search_lists"] == 0
    assert "headrace_search_recall" not in server.search.readings()
    server.keeper.renew()
    server.both()
    server.search.compared(9, 10)
    assert server.search.readings() == {
        "headrace_search_recall": 0.9, "headrace_search_recall_low": 0, "headrace_search_compared_total": 1,
        "headrace_search_answers_total": 41,
        "headrace_search_lists": num_lists_for(NUM_ITEMS), "headrace_search_changed_rows": 0,
        "headrace_search_builds_total": 1, "headrace_search_failures_total": 0,
    }  # fmt: skip


def test_a_server_says_how_much_it_finds() -> None:
    server = Server()
    config = ServingConfig(search="index", search_least_items=1)
    service = Service(config, server.manager, Histories(10**8))
    try:
        server.swap()  # a service is told from here on
        server.swap("base", model_id="another")
        assert SearchKeeper(service.search, server.manager).renew()
        assert service.readiness().recall is None
        service.search.compared(3, 4)
        assert service.readiness().recall == 0.75
        assert ("headrace_search_recall", 0.75) in [(name, value) for name, _, value in readings_of(service)]
    finally:
        service.close()
    exact = Service(ServingConfig(), WeightsManager(), Histories(10**8))
    assert exact.readiness().recall is None
    assert not any("search" in name for name, _, _ in readings_of(exact))
    exact.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": "faiss"}, "serving.search: expected one of .'exact', 'index'."),
        ({"search_probes": 0}, "serving.search_probes: expected"),
        ({"search_recall": 1.5}, "serving.search_recall: expected"),
        ({"search_least_items": 0}, "serving.search_least_items: expected"),
        ({"search_compare_s": -1.0}, "serving.search_compare_s: expected"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServingConfig(**settings)


def test_a_search_is_made_only_if_it_is_asked_for() -> None:
    assert search_of(ServingConfig()) is None
    search = search_of(ServingConfig(search="index", search_probes=7, search_least_items=5))
    assert search is not None
    assert (search.num_probes, search.least_items) == (7, 5)


def test_lists_that_are_made_block_by_block_are_the_same(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.search.lists.BLOCK_ROWS", 70)
    other = Server()
    assert other.keeper.renew()
    np.testing.assert_array_equal(other.search.lists.list_V, server.search.lists.list_V)


def test_the_lists_closest_to_a_direction_are_probed(server: Server) -> None:
    lists = server.search.lists
    assert lists.probes(lists.centre_LD, 1)[:, 0].tolist() == list(range(lists.num_lists))


def test_the_best_of_standing_are_those_of_every_length_of_history(server: Server) -> None:
    standing = server.manager.current.standing
    rows, best = best_standing(standing)
    np.testing.assert_array_equal(
        rows, np.flatnonzero(server.manager.current.memory.arrays.first[: len(rows) + 1] >= 0)
    )
    of_length = [set(rows[np.argsort(base_V[rows])[-8:]].tolist()) for base_V in standing.base_VB.T]
    assert set(best.tolist()) == set().union(*of_length)
    assert set(best.tolist()) > of_length[0], "the lengths differ"


def test_centres_are_made_anew_when_the_catalogue_has_doubled(server: Server) -> None:
    before = server.search.lists
    server.keeper._num_rows = len(before.list_V) // 2 - 1
    assert server.keeper.renew()
    assert server.search.lists.centre_LD is not before.centre_LD
    assert not server.keeper.renew(), "it has not doubled since"


def test_lists_hold_each_row_that_competes_once(server: Server) -> None:
    lists = server.search.lists
    rows = np.flatnonzero(lists.list_V >= 0)
    assert np.array_equal(np.sort(lists.row_n), rows)
    first = server.manager.current.memory.arrays.first
    assert np.array_equal(rows, np.flatnonzero(first[: len(lists.list_V)] >= 0))
    again = ItemLists.of(lists.centre_LD, lists.list_V)
    for each in range(lists.num_lists):
        assert set(again.rows_of(np.array([each], np.int32)).tolist()) == set(
            np.flatnonzero(lists.list_V == each).tolist()
        )


def test_lists_of_more_rows_than_a_base_has_are_not_used_and_made_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that goes on from an older checkpoint has not met the newest items."""
    older = Server().world.learner
    server.learn_new_item()
    server.swap()
    monkeypatch.setattr(search_keeper, "MOST_CHANGED", 0)
    assert server.keeper.renew()
    lists, server.world.learner = server.search.lists, older
    monkeypatch.setattr(search_keeper, "MOST_CHANGED", ALL)
    server.swap("base")
    current = server.manager.current
    assert server.search.lists is lists
    assert current.memory.num_rows == len(lists.list_V) - 1
    query_RD = current.network.model.retrieval_query(current.network.model.start_M[None])
    assert server.search.candidates(current, query_RD) is None
    assert_same(*server.both())
    assert server.keeper.renew(), "however recently they were made"
    assert len(server.search.lists.list_V) == current.memory.num_rows
    assert server.search.candidates(current, query_RD) is not None


def test_what_is_compared_is_how_many_of_the_exact_items_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    server, asked = Server(num_probes=1), list[object]()
    assert server.keeper.renew()
    monkeypatch.setattr(server.search, "ask", asked.append)
    nums = []
    with server.manager.hold() as version:
        for request in server.requests():
            (found,), (exact,) = (engine.answer(version, [request]) for engine in (server.engine, server.exact))
            hits, num = asked.pop()[1](version)
            assert (hits, num) == (np.isin(exact.items, found.items).sum(), len(exact.items))
            nums.append(hits)
    assert min(nums) < num, "some are missed"


def test_centres_are_moved_to_the_middle_of_their_rows(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    version = server.manager.current
    rows, _ = best_standing(version.standing)
    direction_ND = directions(version, rows)

    def closeness() -> float:
        centre_LD = find_centres(rows, lambda some: directions(version, some))
        return float((direction_ND @ centre_LD.T).max(dim=1).values.mean())

    moved = closeness()
    monkeypatch.setattr(item_lists, "ROUNDS", 0)
    assert moved > closeness() + 0.02
