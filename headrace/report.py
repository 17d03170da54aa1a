"""What an audit found: a check for each promise, as a table or as JSON."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.foreign_text import foreign
from headrace.ledger import Violations


@dataclass(slots=True)
class Check:
    """One promise: what was counted, how much of it could be checked, and the violations."""

    name: str
    found: str
    num_checked: int
    num_total: int
    violations: Violations = field(default_factory=Violations)

    @property
    def share(self) -> float:
        """The share of what should be checked that the topics still hold."""
        return self.num_checked / self.num_total if self.num_total else 1.0


@dataclass(slots=True)
class Report:
    """The checks, and the totals."""

    checks: list[Check]
    sums: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether no check found a violation."""
        return not any(check.violations.num for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-serialisable data."""
        rows = [
            {
                "check": check.name,
                "found": check.found,
                "checked_share": check.share,
                "num_violations": check.violations.num,
                "violations": list(check.violations),
            }
            for check in self.checks
        ]
        return {"passed": self.passed, **self.sums, "checks": rows}


def print_report(report: Report, console: Console) -> None:
    """Print a table, and the violations below it."""
    table = Table(title="audit")
    table.add_column("promise")
    table.add_column("found")
    table.add_column("checked", justify="right")
    table.add_column("result")
    for check in report.checks:
        bad = check.violations.num
        result = f"[red]{bad:,} violation{'s' if bad > 1 else ''}[/]" if bad else "[green]holds[/]"
        table.add_row(check.name, check.found, f"{check.share:.0%}", result)
    console.print(table)
    for check in report.checks:
        for words in check.violations:
            console.print(foreign(f"  {check.name}: {words}", style="red"))
        if check.violations.num > len(check.violations):
            console.print(f"  {check.name}: and {check.violations.num - len(check.violations):,} more", style="red")
    if not report.passed:
        print("headrace: the audit found violations", file=sys.stderr)
