"""`make` sets up what a target needs, and only that."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
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


def test_measurements_on_a_gpu_follow_tests_that_fail(checkout: Path) -> None:
    python = checkout / "python"
    python.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *pytest*) exit 1; esac\n')
    python.chmod(0o755)
    command = ["make", "--no-print-directory", f"GPU_PYTHON={python}", "GPU_WORKERS=", "test-gpu", "bench-gpu"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stdout.index("\n-m pytest tests/gpu") < done.stdout.index("\n-m bench.gpu")


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


def set_up_with(checkout: Path, **environment: str) -> str:
    """What ``make setup`` says on a machine of which the environment says more, when it refuses."""
    command = ["make", "--no-print-directory", "VENV=.venv", "setup"]
    # Under `make test` the variables of that command line would otherwise win over these.
    around = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | environment
    done = subprocess.run(command, cwd=checkout, env=around, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stdout
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert said[-1].startswith("headrace: "), done.stderr
    return "\n".join(said)


def program(path: Path, code: str, interpreter: str = sys.executable) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{interpreter}\n{code}")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("machine", ["Darwin arm64", "Linux riscv64"])
def test_another_system_is_refused_in_one_line(checkout: Path, machine: str) -> None:
    system, processor = machine.split()
    program(checkout / "bin" / "uname", f"case $1 in -s) echo {system};; -m) echo {processor};; esac", "/bin/sh")
    said = set_up_with(checkout, PATH=f"{checkout}/bin:{os.environ['PATH']}")
    assert said.startswith(f"headrace: expected Linux on x86-64 or arm64, got {machine}; use Docker there")
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_another_python_is_refused_in_one_line(checkout: Path, version: tuple[int, int]) -> None:
    shown = f"Python {version[0]}.{version[1]}.0"
    code = f"import sys\nif sys.argv[1] == '--version': sys.exit(print({shown!r}))\n"
    python = program(checkout / "python", code + f"sys.version_info = {(*version, 0)}\nexec(sys.argv[2])\n")
    said = set_up_with(checkout, PYTHON=python)
    assert said == f"headrace: expected Python 3.11 to 3.13, got {shown}; set PYTHON=/path/to/python3.11"


def test_a_python_that_is_missing_or_has_no_venv_is_refused_in_one_line(checkout: Path) -> None:
    assert set_up_with(checkout, PYTHON="/nowhere/python3").startswith(
        "headrace: expected Python 3.11 to 3.13, found no /nowhere/python3; install it"
    )
    python = program(checkout / "python", "import sys\nsys.modules['ensurepip'] = None\nexec(sys.argv[2])\n")
    assert set_up_with(checkout, PYTHON=python).startswith(f"headrace: expected Python with venv, got {python} without")


def test_a_missing_compiler_is_noticed_before_anything_is_downloaded(checkout: Path) -> None:
    tools = checkout / "bin"
    tools.mkdir()
    for name in ("sh", "make", "cat", "cksum", "tr", "find", "uname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    said = set_up_with(checkout, PATH=str(tools), PYTHON=sys.executable, CXX="")
    assert said == "headrace: expected a C++ compiler, found neither g++ nor clang++; install g++, or set CXX"
    said = set_up_with(checkout, PYTHON=sys.executable, CXX="nothere -m64")
    assert said == "headrace: CXX: expected a C++ compiler, found no nothere; unset it, or set it to a command"
    assert not (checkout / ".venv").exists()


def test_an_environment_of_another_python_is_refused_in_one_line(checkout: Path) -> None:
    code = "import sys\nif sys.argv[1] == '--version': sys.exit(print('Python 3.10.1'))\n"
    program(checkout / ".venv" / "bin" / "python", code + "sys.version_info = (3, 10, 1)\nexec(sys.argv[2])\n")
    said = set_up_with(checkout, PYTHON=sys.executable)
    assert said.startswith("headrace: expected Python 3.11 to 3.13 in .venv, got Python 3.10.1; remove .venv")


def test_packages_that_cannot_be_fetched_end_with_what_that_needs(checkout: Path) -> None:
    for name in ("pip", "python"):
        fails = "test $1 = -c || { echo 'ERROR: No matching distribution' >&2; exit 1; }\n"
        program(checkout / ".venv" / "bin" / name, fails, "/bin/sh")
    reason, ours = set_up_with(checkout, PYTHON=sys.executable).splitlines()
    assert reason.startswith("ERROR")
    assert ours.endswith("for the reason above; it needs a package index and 10 GB on the disk")


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(settings["classifiers"]))
    first, last = (version.split(".")[1] for version in (classified[0], classified[-1]))
    assert classified == [f"3.{minor}" for minor in range(int(first), int(last) + 1)]
    assert settings["requires-python"] == f">=3.{first},<3.{int(last) + 1}"
    assert f"(3, {first}) <= sys.version_info[:2] <= (3, {last})" in (ROOT / "Makefile").read_text()
    assert f"Python 3.{first} to 3.{last}" in (ROOT / "README.md").read_text()
    tested = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text())
    assert tested is not None
    assert re.findall(r"3\.\d+", tested[1]) == classified


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_what_is_locked_was_built_for_each_supported_python_and_processor(processor: str, tmp_path: Path) -> None:
    """Less Faust on arm64: it is compiled there, or left in Python where Python's headers are missing."""
    uv = Path(sys.executable).parent / "uv"
    command = [uv, "pip", "install", "--dry-run", "--quiet", "--require-hashes", "-r", ROOT / "constraints.txt"]
    command += ["--target", tmp_path / "none", "--cache-dir", tmp_path / "cache", "--only-binary", ":all:"]
    command += ["--python-platform", f"{processor}-manylinux_2_28"]
    command += ["--no-binary", "faust-streaming"] if processor == "aarch64" else []
    for version in ("3.11", "3.12", "3.13"):
        done = subprocess.run(
            [*command, "--python-version", version], capture_output=True, text=True, check=False, timeout=120
        )
        if "Failed to fetch" in done.stderr or "error sending request" in done.stderr:
            pytest.skip("no package index")
        assert done.returncode == 0, done.stderr
