"""The commands that decide which version, of which line of training, all servers answer from."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.commands.options import Bootstrap, ConfigPath, read_settings

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Recorded with the decision.")]


def pin(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="EPOCH/NUMBER, as `headrace versions` lists them.")],
    reason: Reason = "",
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Have all servers answer from one version, and stay with it, until `headrace unpin`.

    If it has not been published yet, they wait for it. To pin a single server, set `serving.pin` in its configuration.
    """
    from headrace.rollout import pin as run

    raise typer.Exit(run(read_settings(config, bootstrap), version, reason))


def unpin(config: ConfigPath = None, bootstrap: Bootstrap = None) -> None:
    """Let servers follow the newest good version again."""
    from headrace.rollout import unpin as run

    raise typer.Exit(run(read_settings(config, bootstrap)))


def rollback(
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="[VERSION]",
            help="EPOCH/NUMBER; default: the last of the previous epoch, else the one before the newest.",
        ),
    ] = None,
    reason: Reason = "",
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Put all servers back to an earlier version: like `headrace pin`, for a version that is in the topic."""
    from headrace.rollout import rollback as run

    raise typer.Exit(run(read_settings(config, bootstrap), version, reason))


def switch(
    line: Annotated[str, typer.Argument(metavar="LINE", help="`kafka.line` of its trainer; main: the main line.")],
    when_as_good: Annotated[
        bool, typer.Option("--when-as-good", help="Wait until its newest version is as good as the one followed now.")
    ] = False,
    worse: Annotated[
        float,
        typer.Option(
            "--worse",
            metavar="FRACTION",
            min=0.0,
            max=1.0,
            help="By how much HR@10 and NE may be worse all the same: 0.02 is 2%.",
        ),
    ] = 0.02,
    reason: Reason = "",
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Have all servers follow another line of training: a trainer with another `kafka.line`, on the same actions."""
    from headrace.rollout import switch as run

    name = "" if line == "main" else line
    raise typer.Exit(run(read_settings(config, bootstrap), name, reason, when_as_good=when_as_good, worse=worse))
