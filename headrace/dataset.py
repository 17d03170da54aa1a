"""Real ratings for the demo: MovieLens-100K out of a wheel of the package index, kept in a cache folder.

The data set is F. M. Harper and J. A. Konstan's (https://doi.org/10.1145/2827872), free for research and not ours to
pass on; so it is fetched by whoever runs the demo, from the wheel of RecBole, which carries it as its example.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from wire.errors import HeadraceError

WHEEL = "recbole==1.2.1"
WHEEL_HASH = "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
INSIDE = "recbole/dataset_example/ml-100k/"
NAME = "ml-100k"


class DatasetError(HeadraceError):
    """The data set is missing or cannot be read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file of ratings or actions, and what its items are called where that is known."""

    name: str
    path: Path
    titles: dict[str, str] = field(default_factory=dict)

    def title(self, item: str | int) -> str:
        """What people call the item; its id where nothing better is known."""
        return self.titles.get(str(item), str(item))


def cache_dir() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/headrace`` or ``~/.cache/headrace``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headrace"


def open_dataset(path: Path | None) -> Dataset:
    """The user's own file, or MovieLens-100K where ``path`` is None. Raises `DatasetError`."""
    if path is None:
        return movielens_100k()
    if not path.is_file():
        raise DatasetError(
            f"--dataset: expected a file, got {path}; formats: ratings.dat, ratings.csv, u.data, .inter, .jsonl"
        )
    return Dataset(path.name, path, _titles_beside(path))


def movielens_100k() -> Dataset:
    """MovieLens-100K: 100,000 ratings of 943 people on 1,682 films. Fetched once."""
    folder = cache_dir() / NAME
    ratings, items = folder / "ml-100k.inter", folder / "ml-100k.item"
    if not (ratings.is_file() and items.is_file()):
        _fetch(folder)
    return Dataset("MovieLens-100K", ratings, _recbole_titles(items))


def _fetch(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as name:
        scratch = Path(name)
        wheel = _download(scratch)
        ready = scratch / NAME
        ready.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for file in ("ml-100k.inter", "ml-100k.item"):
                (ready / file).write_bytes(archive.read(INSIDE + file))
        try:
            ready.rename(folder)
        except OSError:
            # Another run was first.
            if not (folder / "ml-100k.inter").is_file():
                raise


def _download(scratch: Path) -> Path:
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{WHEEL} --hash={WHEEL_HASH}\n")
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"),
        *("--require-hashes", "--only-binary", ":all:", "--dest", str(scratch), "--requirement", str(requirement)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise DatasetError(
            f"cannot fetch MovieLens-100K (pip download {WHEEL}): {said[-1] if said else 'pip said nothing'}; "
            "connect to a package index, or give a file of your own: --dataset PATH"
        )
    return wheels[0]


def _recbole_titles(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["item_id:token"]: f"{row['movie_title:token_seq']} ({row['release_year:token']})" for row in rows}


def _titles_beside(path: Path) -> dict[str, str]:
    """Titles from the file that MovieLens puts next to its ratings, where it is there."""
    for name, separator, encoding in (("movies.dat", "::", "latin-1"), ("u.item", "|", "latin-1")):
        file = path.parent / name
        if file.is_file():
            lines = file.read_text(encoding=encoding).splitlines()
            return {parts[0]: parts[1] for line in lines if len(parts := line.split(separator)) > 1}
    if (path.parent / "movies.csv").is_file():
        with (path.parent / "movies.csv").open(encoding="utf-8", newline="") as stream:
            return {row["movieId"]: row["title"] for row in csv.DictReader(stream)}
    items = path.with_suffix(".item")
    if items.is_file():
        try:
            return _recbole_titles(items)
        except KeyError:
            return {}
    return {}
