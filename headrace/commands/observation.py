"""The commands that show how a deployment is doing: lag, versions, topics, dead letters, audit, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.commands.options import Bootstrap, ConfigPath, Line, name_of_line, read_settings


def lag(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per message, for pipes.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show the newest message and end.")] = False,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            "--max-seconds", metavar="N", min=0.0,
            help="End with status 1 as soon as any stage, or the newest message itself, is more than N seconds behind; "
            "with --once, say whether it is now.",
        ),
    ] = None,
    line: Line = None,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:  # fmt: skip
    """Watch how far each stage is behind, live, from the trainer-lag topic. Ctrl-C ends it."""
    from headrace.lag import watch

    settings = read_settings(config, bootstrap)
    raise typer.Exit(watch(settings, line=name_of_line(line), as_json=as_json, once=once, max_s=max_seconds))


def top(line: Line = None, config: ConfigPath = None, bootstrap: Bootstrap = None) -> None:
    """Show the whole pipeline on this terminal: freshness, stages, quality, processes. q ends it."""
    from headrace.top import watch

    raise typer.Exit(watch(read_settings(config, bootstrap), name_of_line(line)))


def versions(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per version.")] = False,
    num: Annotated[int, typer.Option("--last", metavar="N", min=1, help="How many, the newest last.")] = 20,
    line: Line = None,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """List the published versions of the weights: number, kind, size, what they have learned, age."""
    from headrace.lines import followed_line, on_line
    from headrace.versions import show

    settings, chosen = read_settings(config, bootstrap), name_of_line(line)
    shown = on_line(settings, followed_line(settings) if chosen is None else chosen)
    raise typer.Exit(show(shown, as_json=as_json, num_last=num))


def topics(
    create: Annotated[bool, typer.Option("--create", help="Create what is missing, with the right settings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per topic.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """List the topics of this deployment and what they hold; --create creates the missing ones."""
    from headrace.topics import show

    raise typer.Exit(show(read_settings(config, bootstrap), create=create, as_json=as_json))


def dead_letters(
    resend: Annotated[
        bool, typer.Option("--resend", "--replay", help="Resend those that the configuration now accepts, each once.")
    ] = False,
    first: Annotated[
        int | None, typer.Option("--from", metavar="OFFSET", min=0, help="With --resend: begin there instead.")
    ] = None,
    despite_retention: Annotated[
        bool,
        typer.Option("--despite-retention", help="With --resend: also what may be of users who were to be forgotten."),
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Show only those with this reason.")] = None,
    num: Annotated[int, typer.Option("--last", metavar="N", min=1, help="How many, the newest last.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Count refused actions by reason, show the newest, and send them again once the cause is fixed."""
    if first is not None and not resend:
        raise typer.BadParameter("goes with --resend", param_hint="--from")
    if despite_retention and not resend:
        raise typer.BadParameter("goes with --resend", param_hint="--despite-retention")
    if resend and (reason is not None or as_json):
        raise typer.BadParameter(
            "shows letters: leave it out with --resend", param_hint="--reason" if reason else "--json"
        )
    from headrace import dead_letters as letters

    settings = read_settings(config, bootstrap)
    if resend:
        raise typer.Exit(letters.resend(settings, first=first, despite_retention=despite_retention))
    raise typer.Exit(letters.show(settings, num_last=num, reason=reason, as_json=as_json))


def audit(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Verify from the topics that nothing was lost, doubled or reordered, and that each interaction was trained once.

    Works on any deployment, while it runs or afterwards. What retention or compaction has removed cannot be recounted;
    the table says what share was checked. Exit status 1 on any violation.
    """
    from headrace.audit import show

    raise typer.Exit(show(read_settings(config, bootstrap), as_json=as_json))


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per finding.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Check this machine and the deployment for problems; each finding comes with a remedy.

    Software, processor, GPU, memory, disks; the broker, its topics, the running processes and their lag, clocks, dead
    letters. Changes nothing. Exit status 1 if there is a problem.
    """
    from headrace.doctor import show

    raise typer.Exit(show(read_settings(config, bootstrap), as_json=as_json))
