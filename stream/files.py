"""Files of actions: ratings as MovieLens and RecBole write them, and JSON lines of actions, told apart by content.

    ratings.dat     user::item::rating::seconds
    u.data          user item rating seconds, tabs between
    ratings.csv     a line of names (userId,movieId,rating,timestamp and the like), then commas or tabs
    *.inter         RecBole: user_id:token, item_id:token, rating:float, timestamp:float, tabs between
    JSON lines      an action a line (`schema/action.schema.json`)
    *.parquet       columns named as above (needs pyarrow)

Any of them may be compressed (.gz, .zst). A rating r becomes one action: "rate", with "like" from 4 on and "love" at 5,
and value r. Actions come in the order of time; among equal times in the order of the file, which carries meaning: half
of MovieLens-1M's consecutive ratings of a user share a second.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from stream.errors import FileError

RATING_KINDS = ("rate", "like", "love")
"""``ActionConfig.kinds`` for ratings; ``SequenceConfig.join_window_s`` is 0 for them."""
FORMATS = "ratings.dat (a::b::c::d), u.data (tabs), ratings.csv (named columns), RecBole .inter, JSON lines, .parquet"
_LIKE, _LOVE = 4.0, 5.0
_USER = ("user_id", "userid", "user")
_ITEM = ("item_id", "itemid", "movieid", "movie_id", "item")
_RATING = ("rating",)
_TIME = ("timestamp", "time", "unix_timestamp")
_REQUIRED = {"user", "item", "action", "timestamp"}
_MS_FROM = 100_000_000_000
"""Times from here on are milliseconds: as seconds they would lie beyond the year 5000."""

_Rating = tuple[int, str | int, str | int, float]
"""Milliseconds, user, item, rating."""


def read_actions(path: Path | str) -> Iterator[dict[str, Any]]:
    """The file's actions, ready for JSON, in the order of time. Reads all of it first. Raises `FileError`."""
    path = Path(path)
    if path.suffix == ".parquet":
        return _actions_of(_read_parquet(path))
    lines = _read_lines(path)
    if not lines:
        raise FileError(f"{path}: expected actions, got an empty file; formats: {FORMATS}")
    if lines[0].lstrip("\ufeff \t").startswith("{"):
        return iter(_read_json(path, lines))
    return _actions_of(_read_ratings(path, lines))


def rating_kinds(rating: float) -> list[str]:
    """The action kinds of a rating."""
    return list(RATING_KINDS[: 1 + (rating >= _LIKE) + (rating >= _LOVE)])


def _actions_of(ratings: list[_Rating]) -> Iterator[dict[str, Any]]:
    ratings.sort(key=itemgetter(0))
    for timestamp_ms, user, item, rating in ratings:
        yield {
            "user": user, "item": item, "action": rating_kinds(rating), "timestamp": timestamp_ms, "value": rating,
        }  # fmt: skip


def _read_lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        elif path.suffix == ".zst":
            import zstandard

            content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
        return content.decode("utf-8").splitlines()
    except FileNotFoundError:
        raise FileError(f"{path}: expected a file of actions, there is none; check the path") from None
    except UnicodeDecodeError:
        raise FileError(f"{path}: expected text in UTF-8, got other bytes; formats: {FORMATS}") from None
    except ImportError:
        raise FileError(f"{path}: expected the package zstandard for .zst, it is missing; install it") from None
    except (OSError, EOFError, ValueError) as error:
        raise FileError(f"{path}: expected a readable file, got {error}; check it") from None
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            raise FileError(f"{path}: expected zstandard data, got {error}; fetch it again") from None
        raise


def _read_json(path: Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    actions: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            action = msgspec.json.decode(line.lstrip("\ufeff"))
        except msgspec.DecodeError as error:
            raise FileError(f"{path}:{number}: expected an action as JSON, got {error}; mend the line") from None
        if not (
            isinstance(action, dict) and action.keys() >= _REQUIRED and isinstance(action["timestamp"], int | float)
        ):
            wanted = f"an object with {', '.join(sorted(_REQUIRED))}"
            raise FileError(f"{path}:{number}: expected {wanted}, got {line[:60]!r}; mend the line")
        actions.append(action)
    actions.sort(key=itemgetter("timestamp"))
    return actions


def _read_ratings(path: Path, lines: Sequence[str]) -> list[_Rating]:
    separator, columns, first_row = _layout(path, lines[0])
    pick, ratings = itemgetter(*columns), list[_Rating]()
    for number, line in enumerate(lines[first_row:], first_row + 1):
        if line:
            try:
                ratings.append(_rating(pick(line.split(separator))))
            except (ValueError, IndexError):
                wanted = f"user, item, rating and time between {separator!r}"
                raise FileError(f"{path}:{number}: expected {wanted}, got {line[:60]!r}; mend the line") from None
    return ratings


def _layout(path: Path, first: str) -> tuple[str, tuple[int, ...], int]:
    """Separator, columns of user, item, rating and time, and how many lines of names there are."""
    if first.count("::") == 3:
        return "::", (0, 1, 2, 3), 0
    separator = "\t" if "\t" in first else ","
    cells = [cell.strip().strip('"').split(":")[0].lower() for cell in first.lstrip("\ufeff").split(separator)]
    named = _columns_named(cells)
    if named is not None:
        return separator, named, 1
    if separator == "\t" and len(cells) == 4 and all(cell.replace(".", "", 1).isdigit() for cell in cells[2:]):
        return separator, (0, 1, 2, 3), 0
    raise FileError(f"{path}: expected a known format, got a first line of {first[:60]!r}; formats: {FORMATS}")


def _columns_named(names: Sequence[str]) -> tuple[int, ...] | None:
    found = [next((i for i, name in enumerate(names) if name in known), -1) for known in (_USER, _ITEM, _RATING, _TIME)]
    return None if -1 in found else tuple(found)


def _rating(cells: tuple[str, str, str, str]) -> _Rating:
    user, item, rating, time = cells
    if not user or not item:
        raise ValueError("empty")
    return _time_ms(float(time)), _key(user), _key(item), float(rating)


def _time_ms(time: float) -> int:
    return round(time) if time >= _MS_FROM else round(time * 1000)


@lru_cache(maxsize=1 << 16)
def _key(text: str) -> str | int:
    text = text.strip('"')
    # "05" is another key than "5", so only what reads back the same becomes a number.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 and str(int(text)) == text else text


def _read_parquet(path: Path) -> list[_Rating]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise FileError(f"{path}: expected the package pyarrow for .parquet, it is missing; install it") from None
    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise FileError(f"{path}: expected a file of actions, there is none; check the path") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: expected a Parquet file, got {error}; check it") from None
    columns = _columns_named([name.lower() for name in table.column_names])
    if columns is None:
        wanted = "columns for user_id, item_id, rating and timestamp"
        raise FileError(f"{path}: expected {wanted}, got {table.column_names}; rename them")
    cells: list[list[Any]] = [table.column(column).to_pylist() for column in columns]
    try:
        return [(_time_ms(time), user, item, float(rating)) for user, item, rating, time in zip(*cells, strict=True)]
    except TypeError:
        raise FileError(f"{path}: expected no empty cell among user, item, rating, time; fill or drop them") from None
