"""The command that continues a deployment with another number of partitions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.commands.options import Bootstrap, ConfigPath, read_settings


def repartition(
    new: Annotated[
        Path,
        typer.Argument(metavar="NEW.toml", help="The new deployment's configuration: another prefix, its partitions."),
    ],
    without_trainer: Annotated[
        bool, typer.Option("--without-trainer", help="Migrate the users only; there is no checkpoint.")
    ] = False,
    without_waiting: Annotated[
        bool, typer.Option("--without-waiting", help="Go on though interactions wait for feedback; none is learned.")
    ] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Continue this deployment under another prefix, with another number of partitions.

    Run it once the producers send to the new topics, and the old worker and trainer have processed the rest and
    stopped. Users, forgotten items and the trainer's checkpoint are migrated; the old topics stay as they are. If it
    is interrupted, run it again. After it has finished, it reports whether actions still arrive in the old topics.
    """
    from headrace.repartition import repartition as run

    old = read_settings(config, bootstrap)
    status = run(old, read_settings(new, bootstrap), without_trainer=without_trainer, without_waiting=without_waiting)
    raise typer.Exit(status)
