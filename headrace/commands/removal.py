"""The command that makes a deployment forget a user or an item."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from headrace.commands.options import Bootstrap, ConfigPath, read_settings


def forget(
    what: Annotated[Literal["user", "item"], typer.Argument(metavar="user|item", help="What to forget.")],
    name: Annotated[str, typer.Argument(metavar="ID", help="The id, as the producers write it.")],
    undo: Annotated[
        bool, typer.Option("--undo", help="For an item: revoke the request. It is then learned as a new item.")
    ] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait until a worker has done it.")
    ] = 60.0,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Forget a user (the history, everywhere), or an item (which is no longer recommended).

    The request goes through the actions topic, so it holds across kills, restores and replays. The output says what
    remains, and for how long.
    """
    if undo and what == "user":
        raise typer.BadParameter("is for items: a user's history is gone", param_hint="--undo")
    from headrace.forget import forget as run

    raise typer.Exit(run(read_settings(config, bootstrap), what, name, is_back=undo, wait_s=wait))
