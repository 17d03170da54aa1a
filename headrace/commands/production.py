"""The commands that send actions: from a file, as history, or of a simulated world."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.commands.options import Actions, Bootstrap, ConfigPath, read_settings


def produce(
    file: Actions,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", min=0.001, help="Actions per second; default: as fast as possible."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Stop after this many actions.")
    ] = None,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Send a file of ratings or actions to the actions topic, in order of time.

    A rating r becomes an action of the kind "rate", and "like" if r >= 4 and "love" if r = 5, with the rating as value.
    """
    from stream.sender import produce as send_file

    raise typer.Exit(send_file(read_settings(config, bootstrap), file, rate=rate, limit=limit))


def backfill(
    file: Actions,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Put a file of history at the start of the actions topic, once, and print the offsets where live traffic begins.

    Run it before the producers start. What is there already is not sent again, so it may be killed and run again. It
    is an error if anything else comes before the end of the file's actions.
    """
    from stream.backfill import run as run_backfill

    raise typer.Exit(run_backfill(read_settings(config, bootstrap), file))


def simulate(
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", min=0.001, help="Actions per second, live; default: as fast as possible."),
    ] = None,
    num_actions: Annotated[
        int | None, typer.Option("--num-actions", metavar="N", min=1, help="Stop after this many; default: never.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same world.")] = 0,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Send the actions of a simulated world: items come and go, preferences drift, feedback arrives late.

    With --rate, the actions happen now, at that rate, like live traffic. Of its kinds (impression, click, like, share,
    hide) it sends those that are configured.
    """
    from stream.live import simulate as send

    raise typer.Exit(send(read_settings(config, bootstrap), rate=rate, num_actions=num_actions, seed=seed))
