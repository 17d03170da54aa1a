"""`make` sets up what a target needs, and only that."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES, PROJECT, KERNELS = "--require-hashes -r constraints.txt", "--editable .", "-m kernels.build"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh checkout, as far as make looks at it."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml", "kernels/build.py", "kernels/csrc"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return tmp_path


def planned(checkout: Path, target: str) -> str:
    """The commands that ``make target`` would run."""
    command = ["make", "--dry-run", "--no-print-directory", "VENV=.venv", target]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True, timeout=60).stdout


def set_up(checkout: Path) -> None:
    """Leave the stamps that a finished set-up would."""
    for stamp in re.findall(r"touch (\S+)", planned(checkout, "setup")):
        (checkout / stamp).parent.mkdir(parents=True, exist_ok=True)
        (checkout / stamp).touch()


@pytest.mark.parametrize(
    ("target", "command"),
    [("demo", "-m headrace demo"), ("test", "-m pytest"), ("test-quick", "-m pytest"), ("lint", "ruff check")],
)
def test_on_a_fresh_machine_each_command_sets_up_what_it_needs(checkout: Path, target: str, command: str) -> None:
    plan = planned(checkout, target)
    assert plan.index(PACKAGES) < plan.index(PROJECT) < plan.index(KERNELS) < plan.index(command)


def test_what_python_has_compiled_is_kept_whatever_the_environment_says(checkout: Path) -> None:
    command = ["make", "--no-print-directory", "--eval", 'told: ; @echo "[$$PYTHONDONTWRITEBYTECODE]"', "told"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.check_output(command, cwd=checkout, env=environment, timeout=60) == b"[]\n"


def test_a_second_run_does_the_work_alone(checkout: Path) -> None:
    set_up(checkout)
    plan = planned(checkout, "demo").splitlines()
    assert len(plan) == 1, plan
    assert "-m headrace demo" in plan[0]


@pytest.mark.parametrize(
    ("file", "wanted", "unwanted"),
    [
        ("constraints.txt", PACKAGES, KERNELS),
        ("pyproject.toml", PROJECT, PACKAGES),
        ("kernels/csrc/simd.h", KERNELS, PACKAGES),
        ("kernels/build.py", KERNELS, PROJECT),
    ],
)
def test_a_changed_file_is_followed_and_the_rest_left_alone(
    checkout: Path, file: str, wanted: str, unwanted: str
) -> None:
    set_up(checkout)
    with (checkout / file).open("a") as changed:
        changed.write("\n")
    plan = planned(checkout, "test")
    assert wanted in plan
    assert unwanted not in plan
