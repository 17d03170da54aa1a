"""Made streams with properties that the others lack: order, repetition, very many new users, a long tail, tied times.

``portal``: short visits, half of them by new users, to articles that are read for hours and link to each other.
``series``: episodes in order, several series at a time. ``music``: albums in order, and favourites again at the same
time of day. ``bazaar``: 200,000 products, users who come once or twice, views that return to what was seen.
``reviews``: a handful for each user, dated by the day, in two domains. ``taps``: only 50 items, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Action = dict[str, Any]
START_MS, HOUR_MS = 1_700_000_000_000, 3_600_000
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
OnChoice = Callable[[int, int, Ints, Floats], None]
"""Called with each action's user and item, and with the items that it could have been about and their probabilities
(unscaled), given all that the generator knows just before it draws. An item may be listed twice."""


def act(user: int, item: int, kinds: str | list[str], hour: float, **more: Any) -> Action:
    """An action, ``hour`` hours after the stream's beginning."""
    time_ms = START_MS + int(hour * HOUR_MS)
    return {"user": int(user), "item": int(item), "action": kinds, "timestamp": time_ms, **more}


def draw(rng: np.random.Generator, weight: Floats) -> int:
    """An index, drawn in proportion to the weights."""
    chances = np.cumsum(weight)
    return int(np.searchsorted(chances, rng.random() * chances[-1], side="right"))


class Visitors:
    """Draws the next visitor: a new user, or one of the last visitors."""

    def __init__(self, rng: np.random.Generator, share_new: float, remembered: int) -> None:
        self._rng, self._share_new, self._remembered = rng, share_new, remembered
        self._visits: list[int] = []
        self._num = 0

    def next(self) -> int:
        """The user of the next visit."""
        visits, rng = self._visits, self._rng
        if not visits or rng.random() < self._share_new:
            user, self._num = self._num, self._num + 1
        else:
            user = visits[int(rng.integers(max(0, len(visits) - self._remembered), len(visits)))]
        visits.append(user)
        return user


def portal(num: int = 50_000, seed: int = 0) -> Iterator[Action]:
    """Each article leads to four of the sixty before it; half of the clicks within a visit follow such a link."""
    rng, an_hour = np.random.default_rng(seed), 500
    hours = num / an_hour
    num_items = int((hours + 24) * 25)
    born = np.sort(rng.uniform(-24, hours, num_items))
    appeal, life = rng.lognormal(0, 1.1, num_items), rng.lognormal(np.log(5), 0.7, num_items)
    section = rng.integers(12, size=num_items)
    links = [rng.choice(np.arange(max(0, item - 60), item + 1), 4).tolist() for item in range(num_items)]
    visitors = Visitors(rng, 0.45, 3_000)
    preference, read = dict[int, Floats](), dict[int, list[int]]()
    hour, done = 0.0, 0
    while done < num:
        hour += rng.exponential(1 / 170)
        user, now, item = visitors.next(), hour, -1
        if user not in preference:
            preference[user], read[user] = rng.dirichlet(np.full(12, 0.4)), []
        first, last = np.searchsorted(born, [now - 36, now])
        pull = appeal[first:last] * np.exp(-(now - born[first:last]) / life[first:last])
        for _ in range(rng.geometric(0.35)):
            if item >= 0 and rng.random() < 0.5:
                found = links[item][min(3, int(rng.geometric(0.5)) - 1)]
            else:
                found = int(first) + draw(rng, pull * (preference[user][section[first:last]] + 0.05))
            if found in read[user][-30:]:
                continue
            item, done = found, done + 1
            read[user].append(item)
            yield act(user, item, "click", now)
            now += rng.exponential(0.03)


def series(
    num: int = 40_000, num_users: int = 1_500, num_series: int = 400, seed: int = 0, on_choice: OnChoice | None = None
) -> Iterator[Action]:
    """Half of the series are released later. Users continue one, abandon some, and now and then skip an episode."""
    rng = np.random.default_rng(seed)
    length = rng.integers(4, 25, num_series)
    start = np.concatenate([[0], np.cumsum(length)])
    born = np.where(np.arange(num_series) < num_series // 2, 0.0, rng.uniform(0, num / 400, num_series))
    appeal, genre = rng.lognormal(0, 1.2, num_series), rng.integers(8, size=num_series)
    preference, activity = rng.dirichlet(np.full(8, 0.4), num_users), rng.lognormal(0, 1, num_users)
    under_way: list[dict[int, int]] = [{} for _ in range(num_users)]
    begun: list[list[int]] = [[] for _ in range(num_users)]
    hour, done = 0.0, 0
    while done < num:
        hour += rng.exponential(1 / 120)
        user, now, at = draw(rng, activity), hour, -1
        mine = under_way[user]
        for _ in range(rng.geometric(0.28)):
            going_on, pull = ([at] if at in mine else list(mine)), np.zeros(num_series)
            if at not in mine:
                pull = appeal * (born <= hour) * (preference[user][genre] + 0.02)
                pull[begun[user]] = 0
            could_be = [start[each] + mine[each] for each in going_on]
            if at not in mine:
                if mine and rng.random() < 0.75:
                    at = list(mine)[int(rng.integers(len(mine)))]
                else:
                    if pull.sum() <= 0:
                        break
                    at = draw(rng, pull)
                    mine[at] = 0
                    begun[user].append(at)
            if on_choice:
                share = pull.sum() and (0.25 if going_on else 1.0) / pull.sum()
                chances = np.concatenate([np.full(len(going_on), 0.75 / max(1, len(going_on))), share * pull])
                items = np.concatenate([could_be, start[:-1]]).astype(np.int64)
                on_choice(user, int(start[at]) + mine[at], items, chances)
            yield act(user, int(start[at]) + mine[at], "watch", now)
            done += 1
            now += 0.4 + rng.exponential(0.05)
            mine[at] += 1 if rng.random() < 0.95 else 2
            if mine[at] >= length[at] or rng.random() < 0.04:
                del mine[at]
            if rng.random() < 0.15:
                at = -1


def music(num: int = 50_000, num_users: int = 600, num_albums: int = 500, seed: int = 0) -> Iterator[Action]:
    """Albums of ten tracks in order, or some of the user's recent favourites from this third of the day, shuffled."""
    rng, tracks = np.random.default_rng(seed), 10
    appeal, genre = rng.lognormal(0, 1.3, num_albums), rng.integers(10, size=num_albums)
    preference, activity = rng.dirichlet(np.full(10, 0.3), num_users), rng.lognormal(0, 0.8, num_users)
    favourites: list[list[tuple[int, int]]] = [[] for _ in range(num_users)]
    hour, done = 0.0, 0
    while done < num:
        hour += rng.exponential(1 / 40)
        user, now, part = draw(rng, activity), hour, int(hour / 8) % 3
        mine, wanted = favourites[user], int(rng.geometric(0.12))
        if len(mine) < 5 or rng.random() < 0.45:
            album = draw(rng, appeal * (preference[user][genre] + 0.01))
            first = 0 if rng.random() < 0.7 else int(rng.integers(tracks))
            played = [album * tracks + track for track in range(first, min(tracks, first + wanted))]
            mine += [(track, part) for track in played if rng.random() < 0.25]
        else:
            pool = [track for track, then in mine if then == part] or [track for track, _ in mine]
            played = [pool[-30:][place] for place in rng.permutation(len(pool[-30:]))[:wanted].tolist()]
        for track in played:
            yield act(user, track, "play", now)
            now += 0.06
        done += len(played)


def bazaar(
    num: int = 60_000, num_items: int = 200_000, seed: int = 0, on_choice: OnChoice | None = None
) -> Iterator[Action]:
    """Within a visit: the same product again, one seen before, a neighbour of the last, or any of its category."""
    rng, num_categories = np.random.default_rng(seed), 400
    appeal = (1 / np.arange(1, num_items + 1) ** 0.8)[rng.permutation(num_items)]
    category = rng.integers(num_categories, size=num_items)
    members = [np.flatnonzero(category == each) for each in range(num_categories)]
    chances, of_category = [np.cumsum(appeal[each]) for each in members], rng.lognormal(0, 1, num_categories)
    visitors, seen = Visitors(rng, 0.6, 4_000), dict[int, list[int]]()
    hour, done = 0.0, 0
    while done < num:
        hour += rng.exponential(1 / 300)
        user, now, visit = visitors.next(), hour, list[int]()
        before = seen.setdefault(user, [])
        here = int(category[before[-1]]) if before and rng.random() < 0.5 else draw(rng, of_category)
        for _ in range(rng.geometric(0.3)):
            luck = rng.random()
            if visit and luck < 0.2:
                item = visit[int(rng.integers(len(visit)))]
            elif before and luck < 0.3:
                item = before[-1 - int(rng.integers(min(5, len(before))))]
            elif visit and luck < 0.6:
                place = int(np.searchsorted(members[here], visit[-1])) + int(rng.normal(0, 3))
                item = int(members[here][place % len(members[here])])
            else:
                item = int(members[here][np.searchsorted(chances[here], rng.random() * chances[here][-1])])
            if on_choice:
                on_choice(user, item, *_bazaar_chances(members[here], appeal, visit, before))
            visit.append(item)
            before.append(item)
            kinds = ["view", *(kind for kind, share in (("cart", 0.08), ("buy", 0.03)) if rng.random() < share)]
            yield act(user, item, kinds, now, features={"category": str(here)})
            now += rng.exponential(0.02)
            done += 1


def _bazaar_chances(members: Ints, appeal: Floats, visit: list[int], before: list[int]) -> tuple[Ints, Floats]:
    items, chances = [members], [appeal[members] / appeal[members].sum()]
    chances[0] *= 0.4 if visit else 0.7 if before else 1.0
    if visit:
        place = int(np.searchsorted(members, visit[-1])) + np.arange(-12, 13)
        away = np.abs(np.arange(-12, 13))  # steps are rounded towards zero, so zero is twice as wide
        bell = np.where(away, 1.0, 2.0) * np.exp(-(((away + 0.5) / 3) ** 2) / 2)
        items += [np.array(visit), members[place % len(members)]]
        chances += [np.full(len(visit), 0.2 / len(visit)), 0.3 * bell / bell.sum()]
    if before:
        last = np.array(before[-5:])
        items.append(last)
        chances.append(np.full(len(last), (0.1 if visit else 0.3) / len(last)))
    return np.concatenate(items), np.concatenate(chances)


def reviews(
    num_users: int = 9_000, num_items: int = 12_000, seed: int = 0, on_choice: OnChoice | None = None
) -> Iterator[Action]:
    """Users join over the years and review about five items, from their four circles or any; items fade with age."""
    rng, days, num_circles = np.random.default_rng(seed), 800, 300
    circle, born = rng.integers(num_circles, size=num_items), rng.uniform(-days, days, num_items)
    appeal, life = rng.lognormal(0, 1.2, num_items), rng.lognormal(np.log(300), 0.6, num_items)
    members = [np.flatnonzero(circle == each) for each in range(num_circles)]
    domain, joined = rng.integers(2, size=num_circles), rng.uniform(0, days, num_users)
    written: list[tuple[int, int, int, Ints]] = []
    for user in range(num_users):
        mine, day, seen = rng.choice(num_circles, 4, replace=False), joined[user], set[int]()
        for _ in range(rng.geometric(0.18)):
            day += rng.exponential(30) if rng.random() < 0.6 else 0.0
            among = (
                members[mine[rng.integers(4)]] if rng.random() < 0.45 else rng.choice(num_items, num_items // 6, False)
            )
            pull = appeal[among] * np.where(born[among] <= day, np.exp(-(day - born[among]) / life[among]), 0.0)
            if day > days or pull.sum() <= 1e-9:
                break
            item = int(among[draw(rng, pull)])
            if item not in seen:
                seen.add(item)
                written.append((int(day), user, item, mine))
    for day, user, item, mine in sorted(written, key=lambda each: each[0]):
        if on_choice:
            pull = appeal * np.where(born <= day, np.exp(-np.maximum(day - born, 0.0) / life), 0.0)
            chances = 0.55 * pull / pull.sum()
            for each in mine:
                total = pull[members[each]].sum()
                chances[members[each]] += (total and 0.45 / 4 / total) * pull[members[each]]
            on_choice(user, item, np.arange(num_items), chances)
        yield act(user, item, "review", (day - days) * 24.0, domain="ab"[domain[circle[item]]])


def taps(
    num: int = 20_000, num_items: int = 50, num_users: int = 1_500, seed: int = 0, on_choice: OnChoice | None = None
) -> Iterator[Action]:
    """One of the user's preferences, what follows the last item, or what is popular, in about equal parts."""
    rng = np.random.default_rng(seed)
    preference = rng.dirichlet(np.full(num_items, 0.6), num_users)
    following = rng.dirichlet(np.full(num_items, 0.2), num_items)
    popular = rng.dirichlet(np.ones(num_items))
    last: dict[int, int] = {}
    for number in range(num):
        user = int(num_users * rng.random() ** 1.5)
        follows = following[last[user]] if user in last else popular
        chances = 0.35 * preference[user] + 0.35 * follows + 0.3 * popular
        item = draw(rng, chances)
        if on_choice:
            on_choice(user, item, np.arange(num_items), chances)
        last[user] = item
        yield act(user, item, "tap", number / 100)
