"""The findings of `headrace doctor`, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.foreign_text import foreign

State = Literal["ok", "note", "problem"]
STYLES: dict[State, str] = {"ok": "green", "note": "yellow", "problem": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. ``remedy``: what to do about a note or a problem; empty if all is well."""

    subject: str
    state: State
    words: str
    remedy: str = ""


def ok(subject: str, words: str) -> Finding:
    """All is well."""
    return Finding(subject, "ok", words)


def note(subject: str, words: str, remedy: str) -> Finding:
    """Something to know or to improve; the deployment works."""
    return Finding(subject, "note", words, remedy)


def problem(subject: str, words: str, remedy: str) -> Finding:
    """Something that is broken, or soon will be."""
    return Finding(subject, "problem", words, remedy)


def show(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print the findings as they come; exit status 1 if any is a problem."""
    found = list(findings)
    if as_json:
        for each in found:
            print(json.dumps(asdict(each)))
    else:
        Console().print(table(found))
    return int(any(each.state == "problem" for each in found))


def table(found: Iterable[Finding]) -> Table:
    """One row per finding, with the remedy underneath."""
    rows = Table(show_header=False, box=None, padding=(0, 1))
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for each in found:
        words = foreign(each.words)
        if each.remedy:
            words.append(f"\n→ {each.remedy}", style=STYLES[each.state])
        rows.add_row(Text(each.state, style=STYLES[each.state]), foreign(each.subject), words)
    return rows
