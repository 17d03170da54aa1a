"""The summary that the demo prints at its end."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from headrace.config import Settings
from headrace.dataset import Dataset
from headrace.lag_view import LagView
from headrace.recommendation import RecommendationCheck
from headrace.report import Report
from headrace.screen import number
from headrace.versions import manifests
from stream.sender import SendReport


def summarise(
    settings: Settings, dataset: Dataset, view: LagView, sent: SendReport, check: RecommendationCheck, report: Report
) -> dict[str, Any]:
    """The summary as data: the last line of ``--json``."""
    published = manifests(settings)
    newest = published[-1]
    retrieval, ranking = newest.metrics["retrieval"]["all"], newest.metrics["ranking"]["all"]
    return {
        "dataset": dataset.name,
        "actions_in": report.sums["num_produced"],
        "interactions_trained": newest.num_interactions,
        "dead_letters": report.sums["num_dead_letters"],
        "hr10": retrieval["model"]["hr10"],
        "hr10_counts": retrieval["counts"]["hr10"],
        "hr10_popular": retrieval["popular_unseen"]["hr10"],
        "ne": ranking["ne"],
        "ne_popular": ranking["ne_baseline"],
        "versions_published": len(published),
        "version_served": view.version,
        "freshness_p50_s": view.freshness_p50_s,
        "actions_per_s": sent.num_actions / sent.elapsed_s,
        "user": check.user,
        "new_actions": [dataset.title(item) for item in check.new],
        "new_actions_to_answer_s": round(check.seconds, 3),
        "recommendations_before": [dataset.title(item) for item in check.before],
        "recommendations_after": [dataset.title(item) for item in check.after],
        "audit_passed": report.passed,
        "elapsed_s": round(view.elapsed_s, 1),
    }


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the summary for people: on a terminal, lines break between words; elsewhere they are whole."""
    console.soft_wrap = not console.is_terminal
    fresh = summary["freshness_p50_s"]
    sign = "=" if summary["actions_in"] == summary["interactions_trained"] else "≠"
    counted = f"{summary['actions_in']:,} {sign} {summary['interactions_trained']:,}"
    others = f"counting alone {number(summary['hr10_counts'])}, the most popular {number(summary['hr10_popular'])}"
    learned = f"HR@10 {number(summary['hr10'])}, {others}"
    ranked = f"NE {number(summary['ne'])}, the item's own rate {number(summary['ne_popular'])}"
    age = "–" if fresh is None else f"{fresh:.1f} s"
    served = f"versions published: {summary['versions_published']:,}; served at the end: {summary['version_served']}"
    for line in (
        f"actions in {sign} interactions trained: {counted}; dead letters: {summary['dead_letters']:,}",
        f"each predicted before it is learned: {learned}; {ranked}",
        f"{served}; freshness while sending (median): {age} at {summary['actions_per_s']:,.0f} actions/s",
    ):
        console.print(line, highlight=False)
    if summary["new_actions"]:
        _print_check(summary, console)


def _print_check(summary: dict[str, Any], console: Console) -> None:
    new, seconds = ", ".join(summary["new_actions"]), summary["new_actions_to_answer_s"]
    console.print(f"\nuser {summary['user']} has new actions: {new}", highlight=False, markup=False)
    console.print(
        f"recommended before, and {seconds:.1f} s later by weights that have learned from them:", highlight=False
    )
    before, after = summary["recommendations_before"], summary["recommendations_after"]
    width = max(len(title) for title in before) + 2
    for index, (old, fresh) in enumerate(zip(before, after, strict=False), start=1):
        mark = " " if fresh in before else "*"
        console.print(f"  {index:2d}  {old:<{width}} {mark} {fresh}", highlight=False, markup=False)
