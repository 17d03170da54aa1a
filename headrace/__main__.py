"""The `headrace` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headrace.config import Settings

app = typer.Typer(
    name="headrace",
    help="Live user actions in, fresh recommendations out, by way of Kafka.\n\n"
    "Try it with nothing else installed: headrace demo. The long-running processes are rooms of their own: "
    "python -m stream worker, python -m trainer, python -m serving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # so that the lines of a docstring are joined
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The TOML file; else $HEADRACE_CONFIG, else ./headrace.toml."),
]
Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap", metavar="HOST:PORT", help="The Kafka broker, over what the file says.")
]


def _settings(config: Path | None, bootstrap: str | None) -> Settings:
    from headrace.config import load_settings

    if bootstrap:
        os.environ["HEADRACE_KAFKA__BOOTSTRAP"] = bootstrap
    return load_settings(config)


@app.command()
def demo(
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", metavar="PATH", help="Your own ratings.dat, ratings.csv, u.data, .inter or .jsonl."),
    ] = None,
    bootstrap: Annotated[
        str | None,
        typer.Option("--bootstrap", metavar="HOST:PORT", help="Use this broker instead of the embedded one."),
    ] = None,
    duration: Annotated[
        float | None, typer.Option("--duration", metavar="SECONDS", min=1, help="Stop the replay after so long.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Plain lines, and one JSON object as the last.")] = False,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FOLDER", help="Leave state, checkpoints and logs in this folder.")
    ] = None,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep it running at the end, with its page to look at, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", min=1, max=65535, help="The page's; default: any free one.")
    ] = None,
) -> None:
    """Run the whole loop on this machine: broker, worker, trainer and server, on MovieLens-100K.

    Real ratings go through Kafka in their real order; a live screen shows how the loop keeps up; at the end a few new
    actions are sent and the recommendations of that user change. The same can be watched, and tried, on the page whose
    address it shows. Ends by itself (with --stay, when told to); Ctrl-C ends it cleanly.
    """
    from headrace.demo import run_demo

    raise typer.Exit(
        run_demo(
            dataset=dataset, bootstrap=bootstrap, duration_s=duration, as_json=as_json, keep=keep, stay=stay, port=port
        )
    )


@app.command()
def produce(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Ratings or actions: ratings.dat, .csv, u.data, .jsonl …")
    ],
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", min=0.001, help="Actions a second; default: as fast as it goes."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Stop after so many actions.")
    ] = None,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Send a file of ratings or actions to the actions topic, in the order of time.

    A rating r becomes the kinds "rate", also "like" where r >= 4 and "love" where r = 5, with the rating as its value.
    """
    from stream.replay import replay

    raise typer.Exit(replay(_settings(config, bootstrap), file, rate=rate, limit=limit))


@app.command()
def simulate(
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", min=0.001, help="Actions a second, live; default: as fast as it goes."),
    ] = None,
    num_actions: Annotated[
        int | None, typer.Option("--num-actions", metavar="N", min=1, help="Stop after so many; default: never.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same world.")] = 0,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Send the actions of a simulated world: items are born and die, tastes drift, feedback comes late.

    With --rate the world lives now, at that rate, as live traffic does. Of its kinds (impression, click, like, share,
    hide) it sends those that are configured.
    """
    from stream.live import simulate as send

    raise typer.Exit(send(_settings(config, bootstrap), rate=rate, num_actions=num_actions, seed=seed))


@app.command()
def lag(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a message, for pipes.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show the newest message and end.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Watch how far each stage is behind, live, from the trainer-lag topic. Ctrl-C ends it."""
    from headrace.lag import watch

    raise typer.Exit(watch(_settings(config, bootstrap), as_json=as_json, once=once))


@app.command()
def versions(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a version.")] = False,
    num: Annotated[int, typer.Option("--last", metavar="N", min=1, help="How many, the newest last.")] = 20,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """List the published versions of the weights: number, kind, size, what they learned, age."""
    from headrace.versions import show

    raise typer.Exit(show(_settings(config, bootstrap), as_json=as_json, num_last=num))


@app.command()
def topics(
    create: Annotated[bool, typer.Option("--create", help="Create what is missing, with the right settings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a topic.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """List the topics of this deployment and what they hold; --create makes the missing ones."""
    from headrace.topics import show

    raise typer.Exit(show(_settings(config, bootstrap), create=create, as_json=as_json))


@app.command()
def audit(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Recount from the topics that nothing was lost, doubled or reordered, and that each interaction was trained once.

    Works on any deployment, while it runs or after. What retention or compaction has removed cannot be recounted; the
    table says which share was. Exit status 1 on any violation.
    """
    from headrace.audit import show

    raise typer.Exit(show(_settings(config, bootstrap), as_json=as_json))


def main() -> None:
    """The console script: errors that a person can mend are one line and a status, not a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe has gone (`headrace lag --json | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if not _is_user_facing(error):
            raise
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(1)


def _is_user_facing(error: Exception) -> bool:
    """Whether the message says what to do. The modules are loaded already where such an error was raised."""
    known = (("wire.errors", "HeadraceError"), ("kafka.errors", "KafkaError"))
    return any(isinstance(error, getattr(sys.modules.get(module), name, ())) for module, name in known)


if __name__ == "__main__":
    main()
