"""Options that several commands have, and the configuration that they lead to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headrace.config import Settings

ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The TOML file; else $HEADRACE_CONFIG, else ./headrace.toml."),
]
Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap", metavar="HOST:PORT", help="The Kafka broker; overrides the file.")
]
Line = Annotated[
    str | None,
    typer.Option(
        "--line",
        metavar="LINE",
        help="A line of training (`kafka.line`), or main; default: the one that servers follow.",
    ),
]
Actions = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="Ratings or actions: ratings.dat, .csv, .tsv, u.data, .inter, .jsonl, .parquet."
    ),
]


def _say_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"headrace {version('headrace')}")
        except PackageNotFoundError:
            print("headrace, not installed: expected the metadata of a package; pip install it")
        raise typer.Exit


def all_commands(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Print the package's version, and end."),
    ] = False,
) -> None:
    """Take the options that stand before any command."""


def name_of_line(line: str | None) -> str | None:
    """The value of `kafka.line` that an option or argument stands for."""
    return "" if line == "main" else line


def read_settings(config: Path | None, bootstrap: str | None, **trainer: Any) -> Settings:
    """The configuration, with the command line overriding the file. ``trainer``: fields of that section."""
    from headrace.config import load_settings

    settings, changed = load_settings(config), dict[str, Any]()
    if bootstrap is not None:  # an empty one, of a variable that is not set, is refused
        changed["kafka"] = dataclasses.replace(settings.kafka, bootstrap=bootstrap)
    if trainer:
        changed["trainer"] = dataclasses.replace(settings.trainer, **trainer)
    return settings.model_copy(update=changed)
