"""What the pages point at is there."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from headrace.config import Settings

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


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text()
    for page in folder.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in listed
