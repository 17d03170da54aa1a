"""Streams for comparing recommenders: one is downloaded, some are generated, and some are read from the user's folder.
Each gives actions in time order.

``news``: items appear every few minutes and are read for hours, by each user at most once. ``shop``: users buy their
favourites again, in baskets whose next product depends on the last one. ``synthetic``: records of a Dirichlet process.
``world``: `stream.simulate`. Others: `bench.streams.made`, `bench.streams.habits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.streams import habits, made
from bench.streams.synthetic import BLOCK, LENGTH, Records
from headrace.dataset import movielens_100k
from stream.errors import FileError
from stream.files import read_actions
from stream.simulate import World, WorldConfig

Action = dict[str, Any]
START_MS, HOUR_MS = 1_700_000_000_000, 3_600_000
WORLD_ACTIONS = 130_000
BATCH_ROWS = 100_000


def ml_100k() -> Iterator[Action]:
    """MovieLens-100K, from the cache or downloaded."""
    return read_actions(movielens_100k().path)


def world() -> Iterator[Action]:
    """The simulated live world, with feedback in order of arrival."""
    return islice(World(WorldConfig()).actions(), WORLD_ACTIONS)


def news(
    num: int = 60_000,
    num_users: int = 4_000,
    born_an_hour: float = 40.0,
    seed: int = 0,
    on_choice: made.OnChoice | None = None,
) -> Iterator[Action]:
    """Clicks on articles: users read what is new, popular, and close to their preferences and their last click."""
    rng, width = np.random.default_rng(seed), 12
    hours = num / 600
    num_items = int((hours + 24) * born_an_hour)
    born = np.sort(rng.uniform(-24, hours, num_items))
    topic, preference = _directions(rng, num_items, width), _directions(rng, num_users, width)
    appeal, life = rng.normal(0, 1.3, num_items), rng.lognormal(np.log(4), 0.6, num_items)
    activity = rng.lognormal(0, 1.2, num_users)
    read: list[set[int]] = [set() for _ in range(num_users)]
    hour, done = 0.0, 0
    while done < num:
        hour += rng.exponential(1 / 150)
        user, now = _draw(rng, activity), hour
        first, last = np.searchsorted(born, [now - 48, now])
        pull = appeal[first:last] - (now - born[first:last]) / life[first:last]
        interest = preference[user].copy()
        for _ in range(rng.geometric(0.25)):
            mean = pull + 2 * topic[first:last] @ interest
            score = mean + rng.gumbel(size=last - first)
            item = next((int(first + each) for each in np.argsort(-score)[:60] if first + each not in read[user]), -1)
            if item < 0:
                break
            if on_choice:
                mean[[each - first for each in read[user] if first <= each < last]] = -np.inf
                on_choice(user, item, np.arange(first, last), np.exp(mean - mean.max()))
            read[user].add(item)
            interest = 0.7 * interest + 0.5 * topic[item]
            done += 1
            yield _action(user, item, "click", now)
            now += rng.exponential(1 / 60)


def shop(
    num: int = 80_000,
    num_users: int = 1_500,
    num_items: int = 3_000,
    seed: int = 0,
    on_choice: made.OnChoice | None = None,
) -> Iterator[Action]:
    """Purchases in baskets, more than half of them repeats."""
    rng, width = np.random.default_rng(seed), 10
    preference, kind = rng.normal(size=(num_users, width)), rng.normal(size=(num_items, width))
    liking = rng.normal(0, 1.3, num_items) + preference @ kind.T + rng.gumbel(size=(num_users, num_items))
    shelf, category = np.argsort(-liking, axis=1)[:, :400], np.argmax(kind, axis=1)
    activity = rng.lognormal(0, 1, num_users)
    bought: list[dict[int, int]] = [{} for _ in range(num_users)]
    hour, done = 0.0, 0
    while done < num:
        hour += rng.exponential(1 / 20)
        user, now, basket = _draw(rng, activity), hour, list[int]()
        for _ in range(rng.geometric(1 / 6)):
            item = _product(rng, shelf[user], category, bought[user], basket)
            if item in basket:
                continue
            if on_choice:
                on_choice(user, item, *_product_chances(shelf[user], category, bought[user], basket))
            basket.append(item)
            bought[user][item] = bought[user].get(item, 0) + 1
            done += 1
            yield _action(user, item, "purchase", now)
            now += 1 / 120


def _product(
    rng: np.random.Generator,
    shelf: NDArray[np.int64],
    category: NDArray[np.int64],
    bought: dict[int, int],
    basket: list[int],
) -> int:
    if bought and rng.random() < 0.55:
        times = np.array(list(bought.values()), float)
        return list(bought)[_draw(rng, times)]
    if basket and rng.random() < 0.5:  # products that go together are neighbours
        beside = shelf[category[shelf] == (category[basket[-1]] + 1) % 10]
        return int(beside[min(int(rng.exponential(4)), len(beside) - 1)]) if len(beside) else int(shelf[0])
    return int(shelf[min(int(rng.exponential(60)), len(shelf) - 1)])


def _product_chances(
    shelf: NDArray[np.int64], category: NDArray[np.int64], bought: dict[int, int], basket: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    again, beside = 0.55 if bought else 0.0, np.zeros(0, np.int64)
    if basket:
        beside = shelf[category[shelf] == (category[basket[-1]] + 1) % 10]
    paired, times = (1 - again) / 2 if len(beside) else 0.0, np.array(list(bought.values()), float)
    parts = [
        (np.fromiter(bought, np.int64, len(bought)), again * times / max(1.0, times.sum())),
        (beside, paired * _falling(len(beside), 4)),
        (shelf, (1 - again - paired) * _falling(len(shelf), 60)),
    ]
    items, chances = (np.concatenate(each) for each in zip(*parts, strict=True))
    return items, np.where(np.isin(items, basket), 0.0, chances)


def _falling(num: int, mean: float) -> NDArray[np.float64]:
    """Chances of the places 0 to num - 1 of a whole number from an exponential distribution."""
    place = np.arange(num)
    chances = np.exp(-place / mean) - np.exp(-(place + 1) / mean)
    if num:
        chances[-1] = np.exp(-(num - 1) / mean)
    return np.asarray(chances)


def synthetic(num_records: int = 1_000, seed: int = 0) -> Iterator[Action]:
    """The one-pass stream of HSTU's authors (`bench.streams.synthetic`); a record is a user."""
    records = Records(num_records, seed)
    for number in range(records.num_blocks):
        for record, item_L in enumerate(records.block(number).tolist(), number * BLOCK):
            for at, item in enumerate(item_L):
                yield _action(record, item, "click", record + at / LENGTH)


def _directions(rng: np.random.Generator, num: int, width: int) -> NDArray[np.float64]:
    rows = rng.normal(size=(num, width))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _draw(rng: np.random.Generator, weight: NDArray[np.float64]) -> int:
    chances = np.cumsum(weight)
    return int(np.searchsorted(chances, rng.random() * chances[-1], side="right"))


def _action(user: int, item: int, kind: str, hour: float) -> Action:
    return {"user": user, "item": item, "action": kind, "timestamp": START_MS + int(hour * HOUR_MS)}


def ml_1m(path: Path) -> Iterator[Action]:
    """MovieLens-1M: ``ratings.dat``, compressed or not."""
    return read_actions(path)


def amazon(path: Path) -> Iterator[Action]:
    """Reviews of food and of kitchenware by the same people: columns user_id, item_id, timestamp (s), domain."""
    table = _table(path, ("user_id", "item_id", "timestamp", "domain"))
    for user, item, second, domain in sorted(zip(*table, strict=True), key=itemgetter(2)):
        yield {"user": user, "item": item, "action": "review", "timestamp": second * 1000, "domain": domain}


RESPONSES = {
    "is_click": "click", "long_view": "long_view", "is_like": "like", "is_follow": "follow", "is_comment": "comment",
    "is_forward": "forward", "is_profile_enter": "profile_enter", "is_hate": "hate",
}  # fmt: skip


def kuairand(path: Path) -> Iterator[Action]:
    """KuaiRand's short videos: impressions with the user's reactions, where they were shown, and the author."""
    shown = ("user_id", "item_id", "timestamp", "tab", "author_id", "tag", "duration_ms")
    rows = dict.fromkeys(zip(*_table(path, (*shown, *RESPONSES)), strict=True))  # some occur twice
    for user, item, time_ms, tab, author, tag, duration_ms, *responses in sorted(rows, key=itemgetter(2)):
        kinds = [kind for kind, done in zip(RESPONSES.values(), responses, strict=True) if done]
        length = str(int(np.log2(1 + max(0, duration_ms) / 1000) * 2))
        features = {"tab": str(tab), "author": str(author), "tag": str(tag), "length": length}
        yield {
            "user": user, "item": item, "action": ["impression", *kinds], "timestamp": time_ms, "features": features,
        }  # fmt: skip


YAMBDA_KINDS = {"listen": "shown", "like": "like", "dislike": "dislike"}
LISTENED_PCT = 50
"""From this share of a track on, Yambda counts it as listened to."""


def yambda(path: Path) -> Iterator[Action]:
    """Yambda's music events (Yandex, 2025) as published, ``flat/50m/multi_event.parquet``: columns uid, item_id,
    timestamp (s, in units of 5), is_organic, played_ratio_pct, event_type. A listen is ``shown``, and from half of the
    track on also a ``play``, which is a choice; revoked likes and dislikes are left out. The file is sorted by user;
    ties keep its order.
    """
    import pyarrow.parquet as parquet

    names = ["uid", "item_id", "timestamp", "is_organic", "played_ratio_pct", "event_type"]
    table = parquet.read_table(path, columns=names)
    order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
    for first in range(0, len(order), BATCH_ROWS):
        for row in table.take(order[first : first + BATCH_ROWS]).to_pylist():
            kind = YAMBDA_KINDS.get(row["event_type"])
            if kind is None:
                continue
            is_play = kind == "shown" and (row["played_ratio_pct"] or 0) >= LISTENED_PCT
            yield {
                "user": row["uid"], "item": row["item_id"], "action": [kind, *(["play"] if is_play else [])],
                "timestamp": START_MS + 1000 * row["timestamp"],
                "features": {"organic": str(row["is_organic"])},
            }  # fmt: skip


def _table(path: Path, names: Sequence[str]) -> list[list[Any]]:
    """Columns of a Parquet file (needs pyarrow)."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path, columns=list(names))
    return [table[name].to_pylist() for name in names]


@dataclass(frozen=True, slots=True)
class Stream:
    """How a stream is opened. ``needs``: the file in `--data` that it reads, if any."""

    open: Callable[..., Iterable[Action]]
    needs: str = ""


STREAMS: dict[str, Stream] = {
    "ml-100k": Stream(ml_100k),
    "world": Stream(world),
    "news": Stream(news),
    "shop": Stream(shop),
    "synthetic": Stream(synthetic),
    **{
        made.__name__: Stream(made)
        for made in (
            made.portal,
            made.series,
            made.music,
            made.bazaar,
            made.reviews,
            made.taps,
            habits.daytimes,
            habits.routine,
            habits.weekdays,
            habits.loops,
            habits.pairs,
            habits.turns,
        )
    },
    "ml-1m": Stream(ml_1m, "ml-1m.ratings.dat.zst"),
    "kuairand": Stream(kuairand, "kuairand_pure_0425_0508.parquet"),
    "amazon": Stream(amazon, "amazon_food_kitchen.parquet"),
    "yambda": Stream(yambda, "flat/50m/multi_event.parquet"),
}
"""By name."""


def open_stream(name: str, folder: Path | None) -> Iterable[Action]:
    """A stream's actions. Raises `stream.errors.FileError` if it needs a file that is missing."""
    stream = STREAMS[name]
    if not stream.needs:
        return stream.open()
    path = (folder or Path("data")) / stream.needs
    if not path.is_file():
        raise FileError(f"{name}: expected {path}, which is not there; name the folder that has it with --data")
    return stream.open(path)
