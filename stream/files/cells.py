"""Cells of a table: keys, numbers and kinds, checked as the worker would check them."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

from wire.action_json import MAX_EXACT, MAX_INT, MAX_KEY_LEN, MAX_VALUE

_NOTHING = frozenset({"", "nan", "null", "none", "<na>", "n/a", "nat", "inf", "-inf"})
"""What programs write for a missing value."""
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_EXPONENT = re.compile(r"[+-]?[0-9](\.[0-9]+)?[eE]\+[0-9]+")
"""How spreadsheets and data frames write a large number, with as many digits as they show: 1.23457E+17."""
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


class Rounded(float):
    """A number so large that its column's type (16 or 32 bits) cannot tell it from its neighbours."""


class BadCell(ValueError):
    """An unusable cell or header: what was expected, what came, what to do."""


def is_nothing(cell: Any) -> bool:
    """Whether a cell stands for a missing value."""
    if isinstance(cell, str):
        return cell.strip().lower() in _NOTHING
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def read_key(cell: Any, field: str) -> str | int:
    """An id: text, or an integer however it is written. Raises `BadCell`."""
    if type(cell) is str:
        return _key_of_text(cell, field)
    if isinstance(cell, bytes):
        try:
            return _key_of_text(cell.decode(), field)
        except UnicodeDecodeError:
            raise BadCell(f"{field}: expected text in UTF-8, got {shown(cell)}; write it as text") from None
    if isinstance(cell, Rounded) or (isinstance(cell, float) and abs(cell) > MAX_EXACT):
        raise _inexact(cell, field)
    if (isinstance(cell, float) and cell.is_integer()) or (isinstance(cell, Decimal) and _is_whole(cell)):
        cell = int(cell)
    if type(cell) is not int:  # neither true or false nor a time (`stream.files.clock.Milliseconds`)
        raise BadCell(f"{field}: expected text or an integer, got {shown(cell)}; fill it, or drop the row")
    if not -MAX_INT - 1 <= cell <= MAX_INT:
        raise BadCell(f"{field}: expected a 64-bit integer, got {cell}; write it as text")
    return cell


def _inexact(cell: Any, field: str) -> BadCell:
    return BadCell(
        f"{field}: expected text or an integer, got {shown(cell)}, a float that stands for several integers: ids were "
        "rounded; export the column as integers or as text"
    )


def _is_whole(number: Decimal) -> bool:
    return number.is_finite() and number == number.to_integral_value()


@lru_cache(maxsize=1 << 17)
def _key_of_text(text: str, field: str) -> str | int:
    text = text.strip(" ")  # padding, as in aligned tables
    if is_nothing(text):
        raise BadCell(f"{field}: expected an id, got {text!r}, which means a missing value; fill it, or drop the row")
    if field == "user" and text.startswith("\0"):
        raise BadCell(f"user: expected an id that does not start with NUL, got {text[:40]!r}; rename the user")
    if len(text) > MAX_KEY_LEN:
        raise BadCell(f"{field}: expected at most {MAX_KEY_LEN} characters, got {len(text)}: {text[:40]!r}; shorten it")
    if _EXPONENT.fullmatch(text):
        raise _inexact(text, field)
    # Integers in a column with missing values are often written 5.0.
    digits = text.removesuffix(".0")
    # "05" is not the same key as "5", so only what reads back the same becomes a number.
    if not (_INTEGER.fullmatch(digits) and str(int(digits)) == digits):
        return text
    if len(digits) < len(text) and abs(int(digits)) > MAX_EXACT:
        raise _inexact(text, field)
    return int(digits)


def float_of(text: str) -> float:
    """The number that a text is in a file. Raises ValueError, also for 1_000, which is a number in Python alone."""
    if "_" in text:
        raise ValueError
    return float(text)


def read_number(cell: Any, field: str) -> float | None:
    """A finite number that fits into 32 bits; None for an empty cell. Raises `BadCell`."""
    try:
        if type(cell) is str:
            number = float_of(cell)
        else:
            is_other = isinstance(cell, int) and type(cell) is not int  # true, false or a time
            number = math.nan if is_other else float(cell)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if -MAX_VALUE <= number <= MAX_VALUE:
        return number
    if is_nothing(cell) and not (isinstance(cell, str) and cell.strip()):
        return None
    is_comma = isinstance(cell, str) and _DECIMAL_COMMA.fullmatch(cell.strip()) is not None
    remedy = "use a decimal point" if is_comma else "fix or drop the row"
    raise BadCell(f"{field}: expected a finite number, got {shown(cell)}; {remedy}")


def read_kinds(cell: Any) -> list[str]:
    """The kinds of an action. Raises `BadCell`."""
    names = cell.split("|") if isinstance(cell, str) else cell
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadCell(f"action: expected a kind, or several separated by |, got {shown(cell)}; name what happened")
    kinds = [name.strip() for name in names]
    if not kinds or any(name.lower() in _NOTHING for name in kinds):
        raise BadCell(f"action: expected a kind, got {shown(cell)}; name what happened, or drop the row")
    return kinds


def shown(cell: Any) -> str:
    """A cell for a message."""
    return "an empty cell" if cell is None or cell == "" else repr(cell)[:60]
