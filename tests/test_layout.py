"""The rooms are this checkout's: other projects ship packages that import under the same names."""

import ast
import importlib
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "headrace", "kernels", "model", "serving", "state", "stream", "trainer", "wire")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_this_checkouts(room: str) -> None:
    module = importlib.import_module(room)
    assert module.__file__ is not None, f"{room}/__init__.py is missing: an empty folder imports as a namespace package"
    assert Path(module.__file__).resolve().parent == ROOT / room


def test_every_package_of_the_rooms_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = set(ROOMS) - {"bench"}
    found = {file.parent.relative_to(ROOT) for room in rooms for file in (ROOT / room).rglob("__init__.py")}
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in found)


def test_what_the_rooms_import_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*declared["dependencies"], *declared["optional-dependencies"]["demo"]]
    names = {re.split(r"[^A-Za-z0-9_-]", each)[0].lower().replace("_", "-") for each in wanted}
    # Part of a declared one, or looked for where it is wanted.
    names |= {"pydantic-core", "starlette", "triton", "pyarrow"}
    owners = packages_distributions()
    for room in set(ROOMS) - {"bench"}:
        for file in (ROOT / room).rglob("*.py"):
            for module in imports(ast.parse(file.read_text())) - sys.stdlib_module_names - set(ROOMS):
                found = {each.lower().replace("_", "-") for each in owners.get(module, [module])}
                assert found & names, f"{file}: {module} is not among the dependencies"


def test_the_layout_table_is_what_lint_enforces() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)/` \| .* \| ([^|]*) \|$", page, re.MULTILINE)
    table = {room: allowed_by(words) for room, words in rows}
    assert set(table) == {*ROOMS, "tests"}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for room in set(ROOMS) - {"bench"}:
        forbidden: set[str] = set()
        for contract in contracts:
            if contract["type"] == "forbidden" and contract["source_modules"] == [room]:
                forbidden |= set(contract["forbidden_modules"])
        assert forbidden == set(ROOMS) - {room} - table[room], f"{room}: the table and the contracts differ"


def allowed_by(words: str) -> set[str]:
    """The rooms that a cell of the layout table names."""
    named = set(re.findall(r"`(\w+)`", words))
    return set(ROOMS) - named if words.startswith("all") else named


def imports(tree: ast.Module) -> set[str]:
    """The top-level names that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found
