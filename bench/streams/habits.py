"""Made streams of habits: what a user does next is known from what this user did before, or from the last two items.

``daytimes``: demand follows the time of day, and most users come once. ``routine``: four habits of an hour of the day
each. ``weekdays``: three habits of each day of the week. ``loops``: own lists, played again and again in their order.
``pairs``: what follows depends on the last two items together. ``turns``: two interests in turn, so that the last item
but one decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.streams.made import Action, act, draw

HOURS = (7.5, 12.5, 17.0, 21.0)


def routine(num: int = 10_000, num_users: int = 150, num_items: int = 800, seed: int = 0) -> Iterator[Action]:
    """Each user has three to six items for each of four times of the day; one order in seven is of anything."""
    rng, popular = np.random.default_rng(seed), 1 / np.arange(1, num_items + 1) ** 0.8
    habits = [
        [(hour + rng.normal(), [draw(rng, popular) for _ in range(rng.integers(3, 7))]) for hour in HOURS]
        for _ in range(num_users)
    ]
    done, day = 0, 0
    while done < num:
        actions = []
        for user, (hour, items) in [(user, habit) for user, some in enumerate(habits) for habit in some]:
            if rng.random() < 0.4:
                continue
            now = 24 * day + hour + rng.normal(0, 0.4)
            for step in range(int(rng.integers(1, 3))):
                place = min(len(items), int(rng.geometric(0.35))) - 1
                item = items[place] if rng.random() < 0.85 else draw(rng, popular)
                actions.append(act(user, item, "order", now + 0.05 * step))
        yield from sorted(actions, key=lambda action: int(action["timestamp"]))[: num - done]
        done, day = done + len(actions), day + 1


def weekdays(num: int = 12_000, num_users: int = 160, num_items: int = 1_000, seed: int = 0) -> Iterator[Action]:
    """Each user has three items for each day of the week, at any hour; one order in seven is of anything."""
    rng, popular = np.random.default_rng(seed), 1 / np.arange(1, num_items + 1) ** 0.8
    habits = [[[draw(rng, popular) for _ in range(3)] for _ in range(7)] for _ in range(num_users)]
    done, day = 0, 0
    while done < num:
        actions = []
        for user, mine in enumerate(habits):
            for _ in range(rng.poisson(1.3)):
                item = mine[day % 7][rng.integers(3)] if rng.random() < 0.85 else draw(rng, popular)
                actions.append(act(user, item, "order", 24 * day + rng.uniform(7, 22)))
        yield from sorted(actions, key=lambda action: int(action["timestamp"]))[: num - done]
        done, day = done + len(actions), day + 1


def daytimes(num: int = 12_000, num_items: int = 800, seed: int = 0) -> Iterator[Action]:
    """Each item has a time of day, of one to three hours around it; three users in five are new."""
    rng, popular = np.random.default_rng(seed), 1 / np.arange(1, num_items + 1) ** 0.8
    peak, width = rng.uniform(0, 24, num_items), rng.uniform(1, 3, num_items)
    now = 0.0
    for number in range(num):
        now += rng.exponential(1 / 70)
        away = np.abs(now % 24 - peak)
        demand = popular * (np.exp(-((np.minimum(away, 24 - away) / width) ** 2) / 2) + 0.01)
        user = number if rng.random() < 0.6 else int(rng.integers(max(1, number)))
        yield act(user, draw(rng, demand), "view", now)


def loops(num: int = 10_000, num_users: int = 120, num_items: int = 2_000, seed: int = 0) -> Iterator[Action]:
    """Each user has one to three lists of five to fifteen tracks, goes on where a list was left, skips a track now and
    then, and exchanges one in a hundred."""
    rng, popular = np.random.default_rng(seed), 1 / np.arange(1, num_items + 1) ** 0.9
    lists = [
        [[draw(rng, popular) for _ in range(rng.integers(5, 16))] for _ in range(rng.integers(1, 4))]
        for _ in range(num_users)
    ]
    activity, at = rng.lognormal(0, 0.8, num_users), defaultdict[tuple[int, int], int](int)
    hour, done = 0.0, 0
    while done < num:
        hour += rng.exponential(1 / 20)
        user, now = draw(rng, activity), hour
        which = int(rng.integers(len(lists[user])))
        tracks = lists[user][which]
        for _ in range(rng.geometric(0.1)):
            yield act(user, tracks[at[user, which] % len(tracks)], "play", now)
            done, now = done + 1, now + 0.06
            at[user, which] += 1 if rng.random() < 0.93 else 2
            if rng.random() < 0.01:
                tracks[int(rng.integers(len(tracks)))] = draw(rng, popular)


def pairs(num: int = 12_000, num_users: int = 300, num_items: int = 150, seed: int = 0) -> Iterator[Action]:
    """Each two items in a row have three that may follow, the same for all users; a fifth of the actions are noise."""
    rng = np.random.default_rng(seed)
    popular, activity = rng.dirichlet(np.full(num_items, 0.5)), rng.lognormal(0, 0.8, num_users)
    following, last = dict[Any, list[int]](), defaultdict[int, tuple[int, ...]](tuple)
    hour, done = 0.0, 0
    while done < num:
        hour += rng.exponential(1 / 60)
        user, now = draw(rng, activity), hour
        for _ in range(rng.geometric(0.15)):
            item, two = draw(rng, popular), last[user][-2:]
            if len(two) == 2 and rng.random() < 0.8:
                if two not in following:
                    following[two] = [draw(rng, popular) for _ in range(3)]
                item = following[two][min(3, int(rng.geometric(0.6))) - 1]
            last[user] = (*two[-1:], item)
            yield act(user, item, "play", now)
            done, now = done + 1, now + 0.02


def turns(num: int = 12_000, num_users: int = 300, num_items: int = 150, seed: int = 0) -> Iterator[Action]:
    """Each item has three that may follow it after the next one, the same for all users; a fifth are noise."""
    rng = np.random.default_rng(seed)
    popular, activity = rng.dirichlet(np.full(num_items, 0.5)), rng.lognormal(0, 0.8, num_users)
    following = [[draw(rng, popular) for _ in range(3)] for _ in range(num_items)]
    last, hour, done = defaultdict[int, tuple[int, ...]](tuple), 0.0, 0
    while done < num:
        hour += rng.exponential(1 / 60)
        user, now = draw(rng, activity), hour
        for _ in range(rng.geometric(0.15)):
            item = draw(rng, popular)
            if len(last[user]) == 2 and rng.random() < 0.8:
                item = following[last[user][0]][min(3, int(rng.geometric(0.6))) - 1]
            last[user] = (*last[user][-1:], item)
            yield act(user, item, "play", now)
            done, now = done + 1, now + 0.02
