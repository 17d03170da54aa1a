"""What the pages point at is there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import astuple, fields
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import typer

import bench.__main__
from headrace.command import COMMANDS
from headrace.config import Settings
from tests.commands import NOT_RUN, PAGES, commands, in_blocks, why_not
from tests.headrace.registries import metric_names
from wire.action_json import Reason
from wire.topics import Topics

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def pages() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [ROOT / name for name in listed.splitlines()] or sorted(ROOT.glob("*.md"))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def sections_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_section_leads_to_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text())
    assert [(name, part) for name, part in links if part not in sections_of(page.parent / name if name else page)] == []


def test_the_contents_of_the_notes_have_every_heading() -> None:
    notes = ROOT / "bench" / "NOTES.md"
    linked = set(re.findall(r"\]\(#([^)]+)\)", notes.read_text()))
    assert sections_of(notes) - linked == {"notes-on-measurements", "contents"}


NAMED = ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", NAMED)
def test_the_code_that_a_page_names_is_there(name: str) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9.]+\.(?:py|json|toml|xml))`", (ROOT / name).read_text())
    missing = sorted({each for each in named if not (ROOT / each).exists()})
    assert not missing


@pytest.mark.parametrize("name", NAMED)
def test_every_key_of_the_configuration_that_a_page_names_is_one(name: str) -> None:
    keys = {section: {each.name for each in fields(kind.annotation)} for section, kind in Settings.model_fields.items()}
    text = (ROOT / name).read_text()
    named = re.findall(r"`([a-z]+)\.([a-z_0-9]+)(?: *=[^`]*)?`", text)
    named += [(section.lower(), key.lower()) for section, key in re.findall(r"HEADRACE_([A-Z]+)__([A-Z_]+)", text)]
    wrong = [(section, key) for section, key in named if section in keys and key not in keys[section]]
    assert wrong == []


@pytest.mark.parametrize(
    "name", [*NAMED, "headrace.example.toml", *(f"schema/{each.name}" for each in (ROOT / "schema").iterdir())]
)
def test_every_topic_and_metric_that_a_page_names_is_one(name: str) -> None:
    text, topics = (
        (ROOT / name).read_text(),
        {*astuple(Topics.under("headrace")), *astuple(Topics.under("headrace", "line"))},
    )
    assert set(re.findall(r"headrace\.[a-z_.]+\.v\d+(?:\.[a-z]+\b)?", text)) <= topics
    assert set(re.findall(r"\bheadrace_[a-z_]+\b", text)) <= metric_names()


def test_what_the_schemas_name_is_a_field_a_key_or_a_reason() -> None:
    """Their descriptions speak of the configuration without its sections, and of dead letters by their reasons."""
    keys = {each.name for kind in Settings.model_fields.values() for each in fields(kind.annotation)}
    for schema in (ROOT / "schema").iterdir():
        known = {*keys, *get_args(Reason), *re.findall(r'"([a-z_]+)": ', schema.read_text())}
        described = " ".join(re.findall(r'"description": *"((?:[^"\\]|\\.)*)"', schema.read_text()))
        assert set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", described)) <= known


def test_every_kind_of_fault_names_tests_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    _, _, after = text.partition("| kind | what happens, and why | tests |\n| --- | --- | --- |\n")
    rows = [re.findall(r"`(test_\w+)`", row.split(" | ")[-1]) for row in after.split("\n\n")[0].splitlines()]
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    assert len(rows) > 20
    assert all(rows)
    assert {name for row in rows for name in row} <= defined


def test_every_name_that_a_docstring_gives_as_code_is_one() -> None:
    """In single backquotes stand names of this code; a name that was changed would leave a docstring that lies."""
    paths = [path for kind in ("py", "h", "cpp") for path in ROOT.glob(f"[a-z]*/**/*.{kind}")]
    sources = [path.read_text() for path in paths]
    known = {path.stem for path in paths}
    for text in sources:
        known.update(re.findall(r"\w+", re.sub(r"`[^`\n]*`", "", text)))
    named = {each for text in sources for each in re.findall(r"(?<!`)`([A-Za-z_]\w*)`(?!`)", text)}
    assert len(named) > 300
    assert named - known == set()


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text()
    for page in folder.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in listed


def code_of(page: Path) -> Iterator[str]:
    """Each line of code in a page, of its blocks and of its text, without comments."""
    text = page.read_text()
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    for line in [line for block in blocks for line in block.splitlines()] + inline:
        yield line.split(" #")[0].strip()


def options_of_commands() -> dict[str, set[str]]:
    """The options that each command of ``headrace`` takes."""
    app = typer.Typer()
    for name, command in COMMANDS.items():
        app.command(name)(command)
    group = typer.main.get_command(app)
    return {
        name: {"--help", *(option for each in command.params for option in (*each.opts, *each.secondary_opts))}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


PROGRAM = r"(?:^|[;&|$(] *|run --rm [a-z]+ |exec [a-z]+ |[A-Z_]+=\S+ +)"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_gives_is_one(page: Path) -> None:
    """Whether it does what the page says is for the tests of the command."""
    options, wrong = options_of_commands(), []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code_of(page):
        for name, rest in re.findall(PROGRAM + r"(?:\.venv/bin/)?headrace ([a-z][a-z-]*)([^|;&]*)", line):
            given = set(re.findall(r"(?<!\S)(--[a-z-]+)", rest))
            if name not in options or given - options[name]:
                wrong.append(line)
        for module, name in re.findall(r"python -m ([a-z_.]+)(?: ([a-z_]+))?", line):
            is_bench = module == "bench" and name
            if (name not in bench.__main__.names()) if is_bench else find_spec(module) is None:
                wrong.append(line)
        for names in re.findall(r"^make ([a-z-]+(?: [a-z-]+)*)$", line):
            wrong += [line for each in names.split() if each not in targets]
    assert wrong == []


def test_every_command_of_a_block_is_run_by_a_test_or_has_a_reason_not_to_be() -> None:
    others = [line for page in pages() if str(page.relative_to(ROOT)) not in PAGES for line in in_blocks(page)]
    assert [line for line in others if not why_not(line)] == []
    assert {why_not(line) for line in (*commands(), *others)} - {""} == set(NOT_RUN), "no reason is left over"
    named = [file for reason in NOT_RUN.values() for file in re.findall(r"tests/[a-z_/]+\.py", reason)]
    assert [file for file in named if not (ROOT / file).exists()] == []
