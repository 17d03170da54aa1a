"""Files of actions and ratings, recognised by content; every line is checked before anything is sent.

    ratings.dat     user::item::rating::seconds
    u.data          user, item, rating, seconds, separated by tabs
    *.csv, *.tsv    a header, then cells separated by commas, semicolons, tabs or |, quoted where necessary
    *.inter         RecBole: user_id:token, item_id:token, rating:float, timestamp:float, separated by tabs
    JSON            one action per line, or one list of actions (`schema/action.schema.json`)
    *.parquet       columns named as in a csv (requires pyarrow)

Columns may be in any order (`stream.columns.ALIASES` has their names). With a column ``action``, rows are actions
(several kinds as ``click|like``), otherwise ratings: a rating r becomes one action with the kind "rate", "like" from 4
on and "love" at 5, and with value r. Times in a table are seconds, milliseconds, microseconds or nanoseconds since
1970, all in the unit of the first, or ISO 8601, in UTC if no zone is given. In JSON they are milliseconds, as on the
actions topic.

Any file may be compressed (gzip, zstandard, bzip2, xz). Actions are returned in order of time, and among equal times in
file order, which carries meaning: half of the consecutive ratings of MovieLens-1M's users share a second.
"""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import msgspec

from stream.cells import BadCell
from stream.clock import Clock, Milliseconds
from stream.columns import POSITIONS, RATING_KINDS, Columns, Row, columns_named, rating_kinds, used_of
from stream.content import PARQUET, lines_of, read_bytes, read_text
from stream.delimited import SEPARATORS, Dialect, first_line, rows_of, split_line
from stream.errors import FileError
from wire.action import Action, Rejection, decode_record
from wire.action_json import Order
from wire.config import ActionConfig

__all__ = ["RATING_KINDS", "rating_kinds", "read_actions"]
FORMATS = "ratings.dat (a::b::c::d), u.data (tabs), .csv with a header, RecBole .inter, JSON lines, .parquet"


def read_actions(path: Path | str, config: ActionConfig | None = None) -> Iterator[dict[str, Any]]:
    """The file's actions, ready for JSON, in order of time.

    First, all of it is read and checked as a worker with this ``config`` would check it; without one, any kind is
    accepted. Raises `FileError`, which names the line.
    """
    path, now_ms = Path(path), time.time_ns() // 1_000_000
    lenient = config or _AnyKind()
    content = read_bytes(path)
    if content.startswith(PARQUET):
        rows, is_ratings = _read_parquet(path, content, lenient, now_ms)
    else:
        text = read_text(path, content)
        if text.lstrip()[:1] in ("{", "["):
            actions = _read_json(path, text, lenient, now_ms)
            return _some(path, actions)
        rows, is_ratings = _read_table(path, text, lenient, now_ms)
    rows.sort(key=itemgetter(0))
    if config is not None and is_ratings and rows:
        _check_kinds(path, rating_kinds(max(row.value or 0.0 for row in rows)), config)
    return _some(path, rows, (row.as_action() for row in rows))


def _check_kinds(path: Path, kinds: Sequence[str], config: ActionConfig) -> None:
    unknown = [kind for kind in kinds if kind not in config.kinds]
    if unknown:
        raise FileError(f"{path}: {_unknown_kinds(unknown, config)}")


class _EveryKind(dict[str, int]):
    def get(self, kind: str, default: Any = None) -> Any:
        return 1 if kind else default


class _AnyKind(ActionConfig):
    """Default configuration, for callers that decide on the kinds later."""

    @property
    def bit_of(self) -> Mapping[str, int]:
        return _EveryKind()


def _some(
    path: Path, found: Sequence[Any], actions: Iterator[dict[str, Any]] | None = None
) -> Iterator[dict[str, Any]]:
    if not found:
        raise FileError(f"{path}: expected actions, got none (at most a header); give a file that has some")
    return iter(found) if actions is None else actions


def _unknown_kinds(unknown: Sequence[str], config: ActionConfig) -> str:
    joined = next((kind for kind in unknown if "," in kind), None)
    if joined is not None:
        return f"expected one kind, or several separated by |, got {joined!r}; write it as {joined.replace(',', '|')!r}"
    is_ratings = set(unknown) <= set(RATING_KINDS)
    wanted = RATING_KINDS if is_ratings else (*config.kinds, *unknown)
    window = " and HEADRACE_SEQUENCE__JOIN_WINDOW_S=0 (a rating is complete when it arrives)" if is_ratings else ""
    return (
        f"expected actions among {', '.join(config.kinds)}, got {', '.join(unknown)}, which the worker would refuse; "
        f"set HEADRACE_ACTION__KINDS={','.join(wanted)}{window} for every process, or the same in their file"
    )


# JSON


def _read_json(path: Path, text: str, config: ActionConfig, now_ms: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for place, raw in _json_values(path, text):
        outcomes = decode_record(raw, now_ms, config)
        for outcome in outcomes:
            if isinstance(outcome, Rejection):
                raise FileError(f"{place}: {_said(outcome, config)}")
            if isinstance(outcome, Order):
                what = f"user {outcome.user}" if outcome.user else f"item {outcome.item}"
                raise FileError(f"{place}: expected an action, got an order to forget {what}; use headrace forget")
        try:
            content = msgspec.json.decode(raw)
        except msgspec.ValidationError as error:  # in a field that is not used
            raise FileError(
                f"{place}: expected numbers that a double can hold, got {error}; leave that field out"
            ) from None
        actions = content if isinstance(content, list) else [content]
        found += [_plain(one, action) for one, action in zip(outcomes, actions, strict=True) if isinstance(one, Action)]
    found.sort(key=itemgetter("timestamp"))
    return found


def _plain(outcome: Action, action: dict[str, Any]) -> dict[str, Any]:
    """The same action with integers written as such: 5.0 is 5."""
    user = action["user"]
    if isinstance(user, float) or not isinstance(action["timestamp"], int):
        return {**action, "user": int(user) if isinstance(user, float) else user, "timestamp": outcome.timestamp_ms}
    return action


def _json_values(path: Path, text: str) -> Iterator[tuple[str, bytes]]:
    """Each JSON value's place and bytes: the elements of one list, or the lines, each an action or a list. Lists may be
    of any length: the producer makes records of its own."""
    if text.lstrip()[0] == "[" and not _is_json(first_line(text)):
        yield from _elements(str(path), path, text)
        return
    for number, line in enumerate(lines_of(text), 1):
        if line.lstrip()[:1] == "[" and _is_json(line):
            yield from _elements(f"{path}:{number}", path, line)
        elif line.strip():
            yield f"{path}:{number}", line.encode()


def _elements(place: str, path: Path, text: str) -> Iterator[tuple[str, bytes]]:
    try:
        elements = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        number = _line_of(error, text)
        raise FileError(f"{path}:{number}: expected a list of actions as JSON, got {error}; fix it") from None
    if not elements:
        yield place, b"[]"
    yield from ((f"{place}: element {number}", bytes(raw)) for number, raw in enumerate(elements, 1))


def _is_json(line: str) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _line_of(error: Exception, text: str) -> int:
    found = re.search(r"byte (\d+)", str(error))
    return text.encode()[: int(found[1])].count(b"\n") + 1 if found else 1


def _said(rejection: Rejection, config: ActionConfig) -> str:
    if rejection.reason == "malformed":
        got = rejection.message.removeprefix("expected JSON in UTF-8, got ").rpartition(";")[0]
        return f"expected an action as JSON, got {got}; write each on its own line, or all as one list"
    if rejection.reason == "unknown_action":
        action = msgspec.json.decode(rejection.raw)["action"]
        kinds = [action] if isinstance(action, str) else action
        return _unknown_kinds([kind for kind in kinds if kind not in config.kinds], config)
    return rejection.message


# Tables


def _read_table(path: Path, text: str, config: ActionConfig, now_ms: int) -> tuple[list[Row], bool]:
    dialect, columns, has_names = _layout(path, first_line(text), config)
    table = rows_of(path, text, dialect)
    names = next(table, (0, []))[1] if has_names else []
    return _read_rows(f"{path}:", table, columns, config, now_ms, names), columns.is_ratings


def _read_rows(
    prefix: str,
    table: Iterable[tuple[int, Sequence[Any]]],
    columns: Columns,
    config: ActionConfig,
    now_ms: int,
    names: Sequence[str] = (),
) -> list[Row]:
    clock, rows = Clock(config, now_ms), list[Row]()
    for number, cells in table:
        try:
            row = columns.read(cells, clock)
            if row.kinds is not None:
                _check_row(row.kinds, config)
        except BadCell as error:
            is_again = bool(names) and list(map(str, cells)) == list(names)
            what = "expected a row, got the header again; remove it" if is_again else error
            raise FileError(f"{prefix}{number}: {what}") from None
        rows.append(row)
    return rows


def _check_row(kinds: Sequence[str], config: ActionConfig) -> None:
    unknown = [kind for kind in kinds if not config.bit_of.get(kind)]
    if unknown:
        raise BadCell(_unknown_kinds(unknown, config))


def _layout(path: Path, first: str, config: ActionConfig) -> tuple[Dialect, Columns, bool]:
    """How the table is written, its columns, and whether its first line is a header."""
    named: BadCell | None = None
    for separator in SEPARATORS:
        dialect = Dialect(separator, is_quoted=not _is_recbole(first, separator))
        try:
            cells = split_line(first, dialect)
            columns = columns_named(cells, config) if len(cells) > 1 else None
        except csv.Error:
            continue
        except BadCell as error:
            named = named or error
            continue
        if columns is not None:
            return dialect, columns, True
        if separator in ("::", "\t") and len(cells) == 4 and all(map(_is_number, cells[2:])):
            return Dialect(separator, is_quoted=False), POSITIONS, False
    if named is not None:
        raise FileError(f"{path}:1: {named}")
    if not first:
        raise FileError(f"{path}: expected actions, got an empty file; formats: {FORMATS}")
    raise FileError(
        f"{path}:1: expected a known format, got a first line of {first[:60]!r}; formats: {FORMATS}. A table needs a "
        "header such as user_id,item_id,rating,timestamp"
    )


def _is_recbole(first: str, separator: str) -> bool:
    return separator == "\t" and any(cell.split(":")[1:2] in (["token"], ["float"]) for cell in first.split("\t"))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path, content: bytes, config: ActionConfig, now_ms: int) -> tuple[list[Row], bool]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise FileError(f"{path}: expected the package pyarrow for .parquet, which is missing; install it") from None
    try:
        file = parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        names = file.schema_arrow.names
        table = file.read(columns=used_of(names, config))  # the others may be of types that Python does not have
        columns = columns_named(table.column_names, config)
        cells = [_cells_of(column) for column in table.columns]
    except BadCell as error:
        raise FileError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, NotImplementedError, OverflowError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(f"{path}: expected a Parquet file, got {said}; fetch or write it again") from None
    if columns is None:
        wanted = "columns for user_id, item_id, rating or action, and timestamp"
        raise FileError(f"{path}: expected {wanted}, got {names}; rename them")
    table_rows = enumerate(zip(*cells, strict=True), 1)
    return _read_rows(f"{path}: row ", table_rows, columns, config, now_ms), columns.is_ratings


_PER_MS = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}


def _cells_of(column: Any) -> list[Any]:
    """A column of Parquet as Python values; times as `Milliseconds`, since Python's have no nanoseconds and a limited
    range."""
    import pyarrow as pa

    if not pa.types.is_timestamp(column.type):
        return cast("list[Any]", column.to_pylist())
    times, per = _PER_MS[column.type.unit]
    ticks = column.cast(pa.int64()).to_pylist()
    return [None if tick is None else Milliseconds((tick * times + per // 2) // per) for tick in ticks]
