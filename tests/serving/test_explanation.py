"""Why an item is recommended: parts that add up to the served score, and the effect of each interaction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kernels.memory.features import weighted_sum
from kernels.memory.shortlist import Shortlist
from serving.answering import explanation
from serving.config import ServingConfig
from serving.http.app import build_app
from tests.serving.inprocess import Client
from tests.serving.live import MANAGER, WORLD, service_of
from tests.serving.world import MODEL, START_MS

AT = {"timestamp": START_MS + 10**8}
PARTS = ("standing", "memory", "groups", "network", "reranking")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    service = service_of(MANAGER, ServingConfig())
    yield Client(build_app(service))
    service.close()


def explained(client: Client, **body: Any) -> list[dict[str, Any]]:
    answer = client.post("/explain", json={**AT, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


@pytest.mark.parametrize("user", ["u0", "u1", "u2", "nobody"])
def test_what_is_recommended_is_explained_by_parts_that_add_up_to_its_score(client: Client, user: str) -> None:
    served = client.post("/recommend", json={"user": user, "k": 8, **AT}).json()["items"]
    found = explained(client, user=user, k=8, reasons=50)
    assert [each["item"] for each in found] == [each["item"] for each in served]
    for mine, theirs in zip(found, served, strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], rel=1e-5, abs=1e-5)
        assert sum(mine[part] for part in PARTS) == pytest.approx(mine["score"], rel=1e-6, abs=1e-6)
        assert not mine["left_out"]
        memory = sum(each["memory"] for each in mine["reasons"])
        assert memory == pytest.approx(mine["memory"], rel=1e-6, abs=1e-9), "all reasons make up the memory's part"
    assert any(each["reasons"] for each in found) == (user != "nobody")


def test_the_reasons_that_weigh_most_come_first_and_no_more_than_asked_for(client: Client) -> None:
    for each in explained(client, user="u1", k=5, reasons=2):
        weights = [abs(reason["memory"]) + abs(reason["network"] or 0.0) for reason in each["reasons"]]
        assert len(weights) <= 2
        assert weights == sorted(weights, reverse=True)


def test_what_an_interaction_means_to_the_network_is_the_difference_that_leaving_it_out_makes(client: Client) -> None:
    rows = WORLD.examples()[1].interactions
    kinds = MODEL.kinds
    history = [{"item": WORLD.learner.names.all[int(rows.item_hash[n])], "timestamp": int(rows.timestamp_ms[n]),
                "action": [kind for bit, kind in enumerate(kinds) if rows.action_bits[n] >> bit & 1]}
               for n in range(len(rows))]  # fmt: skip
    (whole,) = explained(client, history=history, items=[7], reasons=50)
    (cut,) = explained(client, history=history[:-1], items=[7], reasons=50)
    newest = [each for each in whole["reasons"] if each["timestamp"] == history[-1]["timestamp"]]
    change = sum(each["network"] for each in newest if str(each["item"]) == str(history[-1]["item"]))
    gain_changes = whole["network"] - cut["network"]  # also the gain, where the history's length is in another bucket
    assert len(newest) >= 1
    assert change == pytest.approx(gain_changes, abs=0.5)
    (unmeasured,) = explained(client, history=history, items=[7], reasons=50, network=False)
    assert all(each["network"] is None for each in unmeasured["reasons"])
    assert unmeasured["score"] == pytest.approx(whole["score"])


def test_items_that_would_not_be_recommended_are_explained_too(client: Client) -> None:
    met = WORLD.learner.names.all[int(WORLD.histories["u1"].item_hash[-1])]
    seen, unknown = explained(client, user="u1", items=[met, "never seen"], exclude_seen=True)
    assert (seen["known"], seen["left_out"]) == (True, True)
    assert sum(seen[part] for part in PARTS) == pytest.approx(seen["score"])
    assert (unknown["known"], unknown["left_out"], unknown["score"], unknown["reasons"]) == (False, True, None, [])
    assert unknown["item"] == "never seen"


def test_a_request_for_too_much_is_refused(client: Client) -> None:
    for body in ({"k": 101}, {"items": []}, {"items": list(range(101))}, {"reasons": 51}):
        assert client.post("/explain", json={"user": "u1", **body}).status_code == 422


def test_the_reranking_part_is_the_definitions(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported as the remainder of the score, so it would contain any error in the other parts."""
    assert MANAGER.current is not None
    version, memory = MANAGER.current, MANAGER.current.memory
    looks: list[float] = []
    queries: list[Any] = []
    original = explanation.memory_shares

    def watch(arrays: Any, past: Any, row_C: Any, logit_C: Any) -> Any:
        num = memory.num_rows
        logits = (version.tables["items"].derived.numpy() @ queries[0]).ravel()
        done = weighted_sum(arrays, num, past, logits)
        score_V = done.score_V.copy()
        Shortlist(arrays, done).rescore(score_V)
        looks.extend((score_V - done.score_V)[row_C].tolist())
        return original(arrays, past, row_C, logit_C)

    logits_of = explanation._logits

    def keep(engine: Any, version: Any, requests: Any, row_C: Any) -> Any:
        queries.append(version.network.model.retrieval_query(engine.outputs(version, requests[:1])).numpy().T)
        return logits_of(engine, version, requests, row_C)

    monkeypatch.setattr(explanation, "memory_shares", watch)
    monkeypatch.setattr(explanation, "_logits", keep)
    found = explained(client, user="u2", k=6, exclude_seen=False)
    assert [each["reranking"] for each in found] == pytest.approx(looks, rel=1e-3, abs=1e-3)
