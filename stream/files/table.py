"""Actions and ratings in a table: a header, unless the columns have a known order, then rows of cells."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stream.errors import FileError
from stream.files.cells import BadCell, float_of
from stream.files.clock import Clock
from stream.files.columns import POSITIONS, Columns, Row, columns_named
from stream.files.delimited import SEPARATORS, Dialect, first_line, rows_of, split_line
from stream.files.kinds import check_row
from wire.config import ActionConfig

FORMATS = "ratings.dat (a::b::c::d), u.data (tabs), .csv with a header, RecBole .inter, JSON lines, .parquet"


def read_table(path: Path, text: str, config: ActionConfig, now_ms: int) -> tuple[list[Row], bool]:
    """The rows of a table, in file order, and whether they are ratings. Raises `FileError`, which names the line."""
    dialect, columns, has_names = _layout(path, first_line(text), config)
    table = rows_of(path, text, dialect)
    names = next(table, (0, []))[1] if has_names else []
    return read_rows(f"{path}:", table, columns, config, now_ms, names), columns.is_ratings


def read_rows(
    prefix: str,
    table: Iterable[tuple[int, Sequence[Any]]],
    columns: Columns,
    config: ActionConfig,
    now_ms: int,
    names: Sequence[str] = (),
) -> list[Row]:
    """Numbered lists of cells as rows.

    ``prefix`` comes before a row's number in errors; ``names``: the header, in case it comes again.
    """
    clock, rows = Clock(config, now_ms), list[Row]()
    for number, cells in table:
        try:
            row = columns.read(cells, clock)
            if row.kinds is not None:
                check_row(row.kinds, config)
        except BadCell as error:
            is_again = bool(names) and list(map(str, cells)) == list(names)
            what = "expected a row, got the header again; remove it" if is_again else error
            raise FileError(f"{prefix}{number}: {what}") from None
        rows.append(row)
    return rows


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
        float_of(cell)
    except ValueError:
        return False
    return True
