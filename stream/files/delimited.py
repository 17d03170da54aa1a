"""Text tables: rows, each with the line it begins on, for any separator, quoted or not."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stream.errors import FileError
from stream.files.content import lines_of

DOUBLE_COLON = "::"
SEPARATORS = (DOUBLE_COLON, "\t", ";", ",", "|")
_LONGEST_CELL = 1 << 20
"""Python's csv module refuses cells above 128 KiB by default. Without a limit, an unclosed quote would read on."""

Row = tuple[int, list[str]]
"""The line on which a row begins, and its cells."""


@dataclass(frozen=True)
class Dialect:
    """How a table is written: what separates its cells, and whether they may be quoted."""

    separator: str
    is_quoted: bool = True


def first_line(text: str) -> str:
    """The first line that is not blank; empty if there is none."""
    return next((line for line in text.split("\n") if line.strip()), "").rstrip("\r")


def split_line(line: str, dialect: Dialect) -> list[str]:
    """The cells of one line. Raises ``csv.Error``."""
    if dialect.separator == DOUBLE_COLON:
        return line.split(DOUBLE_COLON)
    return next(_reader([line], dialect), [])


def rows_of(path: Path, text: str, dialect: Dialect) -> Iterator[Row]:
    """All rows except blank ones, in order; each must have as many cells as the first. Raises `FileError`."""
    num_cells = 0
    for number, cells in _rows(path, text, dialect):
        num_cells = num_cells or len(cells)
        if len(cells) != num_cells:
            raise FileError(
                f"{path}:{number}: expected {num_cells} cells separated by {dialect.separator!r} as in the first "
                f"line, got {len(cells)}: {_shown(cells, dialect)}; fix the line, or quote the cell that contains the "
                "separator"
            )
        yield number, cells


def _rows(path: Path, text: str, dialect: Dialect) -> Iterator[Row]:
    lines = lines_of(text)
    if dialect.separator == DOUBLE_COLON:
        yield from ((number, line.split(DOUBLE_COLON)) for number, line in enumerate(lines, 1) if line.strip())
        return
    reader, number = _reader(lines, dialect), 1
    try:
        for cells in reader:
            if cells and (len(cells) > 1 or cells[0].strip()):
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        is_bare = "new-line character" in str(error)
        what = "a carriage return that ends no line" if is_bare else str(error)
        remedy = "end lines with a newline" if is_bare else 'close the quote, or double a quote inside a cell ("")'
        raise FileError(
            f"{path}:{number}: expected cells separated by {dialect.separator!r}, got {lines[number - 1][:60]!r} "
            f"({what}); {remedy}"
        ) from None


def _reader(lines: Sequence[str], dialect: Dialect) -> Any:
    csv.field_size_limit(_LONGEST_CELL)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.is_quoted else csv.QUOTE_NONE
    return csv.reader(
        (line + "\n" for line in lines), delimiter=dialect.separator, quoting=quoting, skipinitialspace=True,
        strict=dialect.is_quoted,
    )  # fmt: skip


def _shown(cells: Sequence[str], dialect: Dialect) -> str:
    return repr(dialect.separator.join(cells)[:60])
