"""The commands that the pages give: which of them `tests/system/test_operations.py` runs, and why not the others."""

from __future__ import annotations

import re
from pathlib import Path

from tests.brokers import REPOSITORY

BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = ("README.md", "docs/operations.md")
"""The pages whose commands are run."""
NOT_RUN = {
    r"(DATASET=\S+ )?docker compose .*": "needs Docker; tests/headrace/test_compose.py checks the files",
    r"echo GRAFANA_PASSWORD=.*": "for docker compose; tests/headrace/test_compose.py checks the files",
    r"make (lint|test|test-quick)": "part of .ci/run; tests/test_make.py checks the targets",
    r"make format": "changes files; make lint refuses what it would change",
    r"make soak": "takes minutes; tests/system/test_soak.py runs a short one",
    r"make demo|headrace demo --stay": "tests/system/test_demo.py runs it",
    r"(make setup &&|export|headrace worker &|python examples/\S+|curl -sf --retry) .*": "one block; tests/system/"
    "test_newcomer.py runs it",
    r"headrace train --(take-over|from-published)": "takes a trainer's place; tests/trainer/test_fencing.py runs it",
    r"headrace (worker|train) --despite-added-partitions": "needs topics that were given partitions; tests/stream/"
    "test_topics.py and tests/trainer/test_positions.py run it",
    r"headrace switch .*": "needs a second trainer; tests/system/test_lines.py runs it",
    r"headrace (pin|rollback)": "needs versions to choose from; tests/serving/test_rollout.py runs it",
    r"headrace (topics --create --config new\.toml|repartition( new\.toml)?)": "needs a second deployment; "
    "tests/system/test_repartition.py runs it",
    r"headrace backfill FILE": "has to come before live traffic; tests/stream/test_backfill.py runs it",
    r"headrace broker": "tests/headrace/test_broker.py runs it",
    r"headrace top": "needs a terminal; tests/headrace/test_top.py draws it",
    r"headrace COMMAND --help": "stands for all; tests/headrace/test_command.py runs each",
}
"""Patterns of whole commands, and why they are not run there."""


def in_blocks(page: Path) -> list[str]:
    """Each command in a page's blocks, without its comment."""
    lines = [line.split(" #")[0].strip() for block in BLOCK.findall(page.read_text()) for line in block.splitlines()]
    return [line for line in lines if re.match(r"([A-Z_]+=\S+ )*[a-z-]+ [^(]", line) and not re.search(r"[─│▶]", line)]


def in_text(page: Path) -> list[str]:
    """Each command of ``headrace`` within a page's sentences."""
    codes = re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text()))
    return [code for code in codes if re.match(r"headrace [a-zA-Z-]+", code)]


def why_not(command: str) -> str:
    """The pattern in `NOT_RUN` that a command has; empty if it is run."""
    return next((pattern for pattern in NOT_RUN if re.fullmatch(pattern, command)), "")


def commands() -> list[str]:
    """Every command of `PAGES`, in their order, each once."""
    pages = [REPOSITORY / name for name in PAGES]
    return list(dict.fromkeys(line for page in pages for line in (*in_blocks(page), *in_text(page))))
