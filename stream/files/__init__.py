"""Files of actions and ratings, recognised by content; every line is checked before anything is sent.

    ratings.dat     user::item::rating::seconds
    u.data          user, item, rating, seconds, separated by tabs
    *.csv, *.tsv    a header, then cells separated by commas, semicolons, tabs or |, quoted where necessary
    *.inter         RecBole: user_id:token, item_id:token, rating:float, timestamp:float, separated by tabs
    JSON            one action per line, or one list of actions (`schema/action.schema.json`)
    *.parquet       columns named as in a csv (requires pyarrow)

Columns may be in any order (`stream.files.columns.ALIASES` has their names). With a column ``action``, rows are actions
(several kinds as ``click|like``), otherwise ratings: a rating r becomes one action with the kind "rate", "like" from 4
on and "love" at 5, and with value r. Times in a table are seconds, milliseconds, microseconds or nanoseconds since
1970, all in the unit of the first, or ISO 8601, in UTC if no zone is given. In JSON they are milliseconds, as on the
actions topic.

Any file may be compressed (gzip, zstandard, bzip2, xz). Actions are returned in order of time, and among equal times in
file order, which carries meaning: half of the consecutive ratings of MovieLens-1M's users share a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from stream.errors import FileError
from stream.files.columns import RATING_KINDS, rating_kinds
from stream.files.content import PARQUET, read_bytes, read_text
from stream.files.json import read_json
from stream.files.kinds import AnyKind, unknown_kinds
from stream.files.parquet import read_parquet
from stream.files.table import read_table
from wire.config import ActionConfig

__all__ = ["RATING_KINDS", "rating_kinds", "read_actions"]


def read_actions(path: Path | str, config: ActionConfig | None = None) -> Iterator[dict[str, Any]]:
    """The file's actions, ready for JSON, in order of time.

    First, all of it is read and checked as a worker with this ``config`` would check it; without one, any kind is
    accepted. Raises `FileError`, which names the line.
    """
    try:
        return _read(Path(path), config)
    except MemoryError:
        raise FileError(
            f"{path}: expected a file that fits into memory, unpacked, got a larger one; split it by time"
        ) from None


def _read(path: Path, config: ActionConfig | None) -> Iterator[dict[str, Any]]:
    now_ms, lenient = time.time_ns() // 1_000_000, config or AnyKind()
    content = read_bytes(path)
    if content.startswith(PARQUET):
        rows, is_ratings = read_parquet(path, content, lenient, now_ms)
    else:
        text = read_text(path, content)
        if text.lstrip()[:1] in ("{", "["):
            actions = read_json(path, text, lenient, now_ms)
            return _some(path, actions)
        rows, is_ratings = read_table(path, text, lenient, now_ms)
    rows.sort(key=itemgetter(0))
    if config is not None and is_ratings and rows:
        _check_kinds(path, rating_kinds(max(row.value or 0.0 for row in rows)), config)
    return _some(path, rows, (row.as_action() for row in rows))


def _check_kinds(path: Path, kinds: Sequence[str], config: ActionConfig) -> None:
    unknown = [kind for kind in kinds if kind not in config.kinds]
    if unknown:
        raise FileError(f"{path}: {unknown_kinds(unknown, config)}")


def _some(
    path: Path, found: Sequence[Any], actions: Iterator[dict[str, Any]] | None = None
) -> Iterator[dict[str, Any]]:
    if not found:
        raise FileError(f"{path}: expected actions, got none (at most a header); give a file that has some")
    return iter(found) if actions is None else actions
