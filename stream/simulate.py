"""A seeded, non-stationary world that generates actions, for trying Headrace and for testing it.

Items appear and disappear, popularity fades with an item's age, preferences drift, each session has its own interest
(so that a sequence model has something to learn), and feedback arrives late: a click after its impression, a like after
its click, and some feedback much later. The same seed and configuration always give the same actions.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.checks import ABOVE_0, AT_LEAST_1, FROM_0, Limit, Names, Number, check_fields, expect
from wire.config import MAX_KINDS

Action = dict[str, Any]
"""One action as its JSON object (`schema/action.schema.json`)."""

KINDS = ("impression", "click", "like", "share", "hide")
"""The kinds that this world knows; a simulation generates those that it is configured for."""

FLOAT = NDArray[np.float64]

WORLD_LIMITS: dict[str, Limit] = {
    "seed": FROM_0,
    **dict.fromkeys(("num_users", "num_items", "num_domains", "num_genres"), AT_LEAST_1),
    "kinds": Names(MAX_KINDS, least=0),
    "start_ms": FROM_0,
    **dict.fromkeys(("actions_per_s", "item_lifetime_s", "feedback_delay_s"), ABOVE_0),
    "session_length": Number(1),
    "preference_drift": Number(0),
    "late_share": Number(0, 1),
}


@dataclass(frozen=True)
class WorldConfig:
    """What the world is like. Times are event times."""

    seed: int = 0
    num_users: int = 1_000
    num_items: int = 2_000
    """Items alive at any time."""
    num_domains: int = 2
    num_genres: int = 8
    """Width of the hidden vectors, which say how much of each genre an item has, and how much a user likes it."""
    kinds: tuple[str, ...] = KINDS
    start_ms: int = 1_700_000_000_000
    actions_per_s: float = 100.0
    """Mean rate of actions in event time."""
    session_length: float = 8.0
    """Mean impressions in a session."""
    item_lifetime_s: float = 6 * 3600.0
    """How long an item exists, on average."""
    preference_drift: float = 0.05
    """How far a user's preferences move per session."""
    feedback_delay_s: float = 4.0
    """Mean time from an impression to its click."""
    late_share: float = 0.02
    """Share of feedback that arrives a hundred times later."""

    def __post_init__(self) -> None:
        check_fields(self, "world", WORLD_LIMITS)
        known = bool(set(self.kinds) & set(KINDS))
        expect(known, "world.kinds", f"some of {', '.join(KINDS)}", self.kinds, "add one of them to action.kinds")


class Catalogue:
    """The current items: ``num_items`` slots, each of which holds one item until another replaces it."""

    def __init__(self, config: WorldConfig, random: np.random.Generator) -> None:
        self._config = config
        self._random = random
        num = config.num_items
        self.genres = np.empty((num, config.num_genres))
        self.domain = np.arange(num) % config.num_domains
        self.item_id = [0] * num
        self.feature = [""] * num
        """The name of the strongest genre."""
        self.birth_s = np.empty(num)
        self.death_s = np.empty(num)
        self.appeal = np.empty(num)
        self.num_born = 0
        for slot in range(num):
            # When the world begins, not everything is new: ages are spread over a lifetime.
            self._bear(slot, -float(random.uniform(0, config.item_lifetime_s)))

    def _bear(self, slot: int, now_s: float) -> None:
        random, config = self._random, self._config
        self.genres[slot] = random.normal(size=config.num_genres) / np.sqrt(config.num_genres)
        self.feature[slot] = f"g{self.genres[slot].argmax()}"
        self.item_id[slot] = self.num_born
        self.birth_s[slot] = now_s
        self.death_s[slot] = max(now_s, 0.0) + random.exponential(config.item_lifetime_s)
        self.appeal[slot] = random.lognormal(sigma=1.0)
        self.num_born += 1

    def advance(self, now_s: float) -> None:
        """Replace the items that have died with new ones."""
        for slot in np.flatnonzero(self.death_s <= now_s):
            self._bear(int(slot), now_s)

    def pull(self, now_s: float) -> FLOAT:
        """(num_items,) how popular each item is now: its appeal, faded by its age."""
        return np.asarray(self.appeal * np.exp(-(now_s - self.birth_s) / self._config.item_lifetime_s))


class World:
    """The world itself; iterate over `actions`."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self._random = np.random.default_rng(config.seed)
        self._catalogue = Catalogue(config, self._random)
        shape = (config.num_users, config.num_genres)
        self._preference = self._random.normal(size=shape) / np.sqrt(config.num_genres)
        self._home_domain = self._random.integers(config.num_domains, size=config.num_users)
        activity = self._random.lognormal(sigma=1.0, size=config.num_users)
        self._activity = np.cumsum(activity / activity.sum())
        self._refreshed_s = -np.inf
        self._by_domain: list[tuple[NDArray[np.int64], FLOAT]] = []
        self._num_sessions = 0
        self._num_actions = 0

    def actions(self) -> Iterator[Action]:
        """Actions without end, in order of arrival (late feedback is about an item shown earlier)."""
        pending: list[tuple[float, int, Action]] = []
        now_s, order = 0.0, 0
        # An impression leads to about 1.6 actions, itself included.
        mean_wait_s = self.config.session_length * 1.6 / self.config.actions_per_s
        while True:
            now_s += float(self._random.exponential(mean_wait_s))
            while pending and pending[0][0] <= now_s:
                yield self._numbered(heapq.heappop(pending)[2])
            for arrival_s, action in self._session(now_s):
                order += 1
                heapq.heappush(pending, (arrival_s, order, action))

    def _numbered(self, action: Action) -> Action:
        self._num_actions += 1
        return {**action, "id": f"{self.config.seed}-{self._num_actions}"}

    def _refresh(self, now_s: float) -> None:
        """Apply births, deaths and fading once a minute: for each session it would cost too much."""
        if now_s < self._refreshed_s + 60.0:
            return
        self._refreshed_s = now_s
        self._catalogue.advance(now_s)
        pull = self._catalogue.pull(now_s)
        self._by_domain = []
        for domain in range(self.config.num_domains):
            slots = np.flatnonzero(self._catalogue.domain == domain)
            if len(slots) == 0:
                slots = np.arange(self.config.num_items)
            self._by_domain.append((slots, np.cumsum(pull[slots] / pull[slots].sum())))

    def _session(self, now_s: float) -> list[tuple[float, Action]]:
        self._refresh(now_s)
        random, config = self._random, self.config
        user = min(int(self._activity.searchsorted(random.random())), config.num_users - 1)
        self._preference[user] += config.preference_drift * random.normal(size=config.num_genres)
        self._preference[user] /= max(1.0, float(np.linalg.norm(self._preference[user])))
        away = random.random() < 0.2
        domain = int(random.integers(config.num_domains)) if away else int(self._home_domain[user])
        self._num_sessions += 1
        shared = {"user": f"u{user}", "session": f"s{config.seed}-{self._num_sessions}", "domain": f"d{domain}"}
        made: list[tuple[float, Action]] = []
        interest = self._preference[user].copy()
        for _ in range(int(random.geometric(1.0 / config.session_length))):
            slot = self._shown(domain, interest)
            clicked = self._impression(made, shared, slot, interest, now_s)
            if clicked:
                interest = 0.6 * interest + 0.6 * self._catalogue.genres[slot]
            now_s += float(random.exponential(8.0))
        return made

    def _shown(self, domain: int, interest: FLOAT) -> int:
        """The item to show: of a few drawn by popularity, the best one for this interest, with noise."""
        slots, chances = self._by_domain[domain]
        drawn = chances.searchsorted(self._random.random(8))
        candidates = slots.take(drawn, mode="clip")
        scores = self._catalogue.genres[candidates] @ interest * 4.0 + self._random.gumbel(size=8)
        return int(candidates[scores.argmax()])

    def _impression(
        self, made: list[tuple[float, Action]], shared: dict[str, Any], slot: int, interest: FLOAT, now_s: float
    ) -> bool:
        """Append one impression and its feedback to ``made``, with times of arrival. Returns whether it was clicked."""
        random = self._random
        catalogue = self._catalogue
        item = {"item": catalogue.item_id[slot], "features": {"genre": catalogue.feature[slot]}}
        liking = float(catalogue.genres[slot] @ interest)
        clicked = random.random() < 1.0 / (1.0 + np.exp(-(5.0 * liking - 2.0)))
        luck = random.random(3)
        wanted = [("impression", True, {}), ("click", clicked, {"value": round(float(random.exponential(30.0)), 3)})]
        wanted += [("like", clicked and luck[0] < 0.3 + 0.4 * liking, {}), ("share", clicked and luck[1] < 0.05, {})]
        wanted += [("hide", not clicked and luck[2] < 0.05 - 0.2 * liking, {})]
        at_s = now_s
        for kind, happens, more in wanted:
            if happens and kind in self.config.kinds:
                arrival_s = at_s + self._delivery_s(kind)
                timestamp_ms = self.config.start_ms + int(at_s * 1000)
                made.append((arrival_s, {**shared, **item, **more, "action": kind, "timestamp": timestamp_ms}))
            at_s += float(random.exponential(self.config.feedback_delay_s))
        return bool(clicked)

    def _delivery_s(self, kind: str) -> float:
        """The delay between an action and its sending; some feedback is very late."""
        if kind == "impression" or self._random.random() >= self.config.late_share:
            return float(self._random.exponential(0.2))
        return float(self._random.exponential(100 * self.config.feedback_delay_s))
