"""One user's recommendations before and after a few new actions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from wire.errors import HeadraceError

NUM_SHOWN = 10
NUM_NEW = 5
NUM_OTHERS = 25
ENOUGH, TOO_MUCH = 20, 120


@dataclass(slots=True)
class DatasetProfile:
    """What the demo needs to know of a data set: its size, kinds, users and last action."""

    num_actions: int = 0
    kinds: dict[str, None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    last_seen: dict[str, int] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)

    def add(self, actions: Iterable[Mapping[str, Any]]) -> None:
        """Count every action."""
        for action in actions:
            self.num_actions += 1
            user, kinds = str(action["user"]), action["action"]
            self.kinds.update(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds))
            self.counts[user] = self.counts.get(user, 0) + 1
            self.last_seen[user] = self.num_actions
            self.last = action

    def candidates(self) -> list[str]:
        """Users with neither a short nor a long history, the most recent first."""
        fitting = [user for user, num in self.counts.items() if ENOUGH <= num <= TOO_MUCH]
        return sorted(fitting or self.counts, key=lambda user: -self.last_seen[user])


@dataclass(slots=True)
class RecommendationCheck:
    """A user, the items recommended before, the new actions, and the items recommended after."""

    user: str
    before: list[str | int]
    new: list[str | int] = field(default_factory=list)
    after: list[str | int] = field(default_factory=list)
    seconds: float = 0.0
    """The time from sending the new actions to the first answer by weights that have learned them."""


class ServerError(HeadraceError):
    """The server gave an unexpected answer; the message quotes it."""


class Server:
    """An HTTP client of the running server."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30.0, trust_env=False)  # it is on this machine: by no proxy

    def version(self) -> dict[str, Any]:
        """``GET /version``; empty while no version is served."""
        try:
            answer = self._client.get("/version")
        except httpx.HTTPError:
            return {}
        return answer.json() if answer.status_code == 200 else {}

    def recommend(self, user: str, k: int = NUM_SHOWN) -> dict[str, Any]:
        """``POST /recommend`` for a user."""
        try:
            answer = self._client.post("/recommend", json={"user": user, "k": k})
        except httpx.HTTPError as error:
            raise ServerError(f"the server did not answer POST /recommend ({error!r}); see its log") from None
        if answer.status_code != 200:
            raise ServerError(f"the server answered POST /recommend with {answer.status_code}: {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def items_of(answer: Mapping[str, Any]) -> list[str | int]:
    """The items of an answer, best first."""
    return [each["item"] for each in answer["items"]]


def choose_user(server: Server, profile: DatasetProfile) -> RecommendationCheck:
    """A user, and five items recommended to those whose recommendations have least in common with that user's."""
    user, *others = profile.candidates()[: 1 + NUM_OTHERS]
    check = RecommendationCheck(user, items_of(server.recommend(user)))
    lists = [items_of(server.recommend(other)) for other in others]
    if lists:
        farthest = min(lists, key=lambda items: len(set(items) & set(check.before)))
        check.new = [item for item in farthest if item not in check.before][:NUM_NEW]
    return check


def new_actions(check: RecommendationCheck, last: Mapping[str, Any], kinds: list[str]) -> list[dict[str, Any]]:
    """The five actions: a second apart, after everything else."""
    value = {"value": 5.0} if "rate" in kinds else {}
    start_ms = int(last["timestamp"]) + 1000
    return [
        {"user": check.user, "item": item, "action": kinds, "timestamp": start_ms + 1000 * index, **value}
        for index, item in enumerate(check.new)
    ]


def has_learned(server: Server, check: RecommendationCheck, num_trained: int, num_history: int) -> Callable[[], bool]:
    """A condition: the served weights have learned ``num_trained`` interactions, and the history has grown to match."""
    began_s = time.monotonic()

    def holds() -> bool:
        if int(server.version().get("num_interactions") or 0) < num_trained:
            return False
        answer = server.recommend(check.user)
        if int(answer["num_history"]) < num_history:
            return False
        check.after, check.seconds = items_of(answer), time.monotonic() - began_s
        return True

    return holds
