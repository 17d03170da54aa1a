"""The command line: every command of ``headrace``, and ``python -m ROOM`` with the same options.

Options are defined here and nowhere else. A command imports what it needs when it runs, so that help is instant.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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


def _settings(config: Path | None, bootstrap: str | None, **trainer: Any) -> Settings:
    """The configuration, with the command line overriding the file. ``trainer``: fields of that section."""
    from headrace.config import load_settings

    settings, changed = load_settings(config), dict[str, Any]()
    if bootstrap:
        changed["kafka"] = dataclasses.replace(settings.kafka, bootstrap=bootstrap)
    if trainer:
        changed["trainer"] = dataclasses.replace(settings.trainer, **trainer)
    return settings.model_copy(update=changed)


def _say_at_once() -> None:
    from headrace.logs import configure_logs

    configure_logs()


def worker(config: ConfigPath = None, bootstrap: Bootstrap = None) -> None:
    """Turn actions into sequences: the actions topic in, examples for the trainer out.

    Several workers share the partitions. Give each a `stream.component` name and a disk of its own.
    """
    settings = _settings(config, bootstrap)
    from stream.worker import run_worker

    _say_at_once()
    raise typer.Exit(run_worker(settings))


def train(
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Train on this file of actions or ratings, without Kafka."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --file: end with one JSON object.")] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Train again from the topics what was published, and compare the weights.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Lead at once, stopping any trainer that leads now.")
    ] = False,
    from_published: Annotated[
        bool,
        typer.Option(
            "--from-published", help="Where there is no checkpoint, start from the last published version's weights."
        ),
    ] = False,
    checkpoint_dir: Annotated[
        str | None,
        typer.Option(
            "--checkpoint-dir", metavar="FOLDER", help="Where checkpoints go. With --file there are none without it."
        ),
    ] = None,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Train on the stream of examples in one pass, and publish the weights every few seconds."""
    if as_json and file is None:
        raise typer.BadParameter("goes with --file", param_hint="--json")
    if replay and file is not None:
        raise typer.BadParameter("reads the topics: leave --file out", param_hint="--replay")
    _let_idle_threads_sleep()
    _say_at_once()
    settings = _settings(config, bootstrap, **({"checkpoint_dir": checkpoint_dir} if checkpoint_dir else {}))
    if file is not None:
        from headrace.file_training import train_file

        raise typer.Exit(train_file(settings, file, keep=bool(checkpoint_dir), as_json=as_json))
    from trainer.process import replay_topics, train_stream

    raise typer.Exit(
        replay_topics(settings)
        if replay
        else train_stream(settings, take_over=take_over, from_published=from_published)
    )


def _let_idle_threads_sleep() -> None:
    """Make OpenMP's idle threads sleep soon. Call it before torch is loaded.

    By default they spin for milliseconds, which on a shared machine takes the processor away from processes that have
    work to do: 182 small steps took 155 s on two busy cores, and 5 s with this setting.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def serve(config: ConfigPath = None, bootstrap: Bootstrap = None) -> None:
    """Answer recommendation requests over HTTP, from the newest weights on the topic."""
    settings = _settings(config, bootstrap)
    from serving.process import run_server

    _say_at_once()
    raise typer.Exit(run_server(settings))


def broker(
    port: Annotated[int, typer.Argument(metavar="PORT", help="Where to listen.", min=1, max=65535)] = 9092,
) -> None:
    """Run the demo's broker in the foreground. It keeps everything in memory and is meant for trying things out.

    Ctrl-C ends it, and everything it held is gone.
    """
    from headrace.broker import run_broker

    raise typer.Exit(run_broker(port))


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

    Real ratings go through Kafka in their original order, and a live screen shows how the loop keeps up. At the end a
    few new actions are sent, and that user's recommendations change. The page whose address it shows lets you watch and
    try the same. It ends by itself (with --stay, on Ctrl-C, which always ends it cleanly).
    """
    from headrace.demo import run_demo

    raise typer.Exit(
        run_demo(
            dataset=dataset, bootstrap=bootstrap, duration_s=duration, as_json=as_json, keep=keep, stay=stay, port=port
        )
    )


def produce(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Ratings or actions: ratings.dat, .csv, u.data, .inter, .jsonl.")
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
    """Send a file of ratings or actions to the actions topic, in order of time.

    A rating r becomes the kinds "rate", also "like" where r >= 4 and "love" where r = 5, with the rating as its value.
    """
    from stream.replay import replay

    raise typer.Exit(replay(_settings(config, bootstrap), file, rate=rate, limit=limit))


def backfill(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Ratings or actions: ratings.dat, .csv, u.data, .inter, .jsonl.")
    ],
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Put a file of history at the start of the actions topic, once, and say at which offsets live traffic begins.

    Run it before the producers start. What is there already is not sent again, so it may be killed and run again. It is
    an error if anything that is not the file's stands before its end.
    """
    from stream.backfill import run as run_backfill

    raise typer.Exit(run_backfill(_settings(config, bootstrap), file))


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
    """Send the actions of a simulated world: items come and go, tastes drift, feedback arrives late.

    With --rate, the actions happen now, at that rate, like live traffic. Of its kinds (impression, click, like, share,
    hide) it sends those that are configured.
    """
    from stream.live import simulate as send

    raise typer.Exit(send(_settings(config, bootstrap), rate=rate, num_actions=num_actions, seed=seed))


def lag(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a message, for pipes.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show the newest message and end.")] = False,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            "--max-seconds", metavar="N", min=0.0,
            help="End with status 1 as soon as any stage, or the newest message itself, is more than N seconds behind; "
            "with --once, say whether it is now.",
        ),
    ] = None,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:  # fmt: skip
    """Watch how far each stage is behind, live, from the trainer-lag topic. Ctrl-C ends it."""
    from headrace.lag import watch

    raise typer.Exit(watch(_settings(config, bootstrap), as_json=as_json, once=once, max_s=max_seconds))


def top(config: ConfigPath = None, bootstrap: Bootstrap = None) -> None:
    """Show the whole pipeline on this terminal: freshness, stages, quality, processes. q ends it."""
    from headrace.top import watch

    raise typer.Exit(watch(_settings(config, bootstrap)))


def versions(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a version.")] = False,
    num: Annotated[int, typer.Option("--last", metavar="N", min=1, help="How many, the newest last.")] = 20,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """List the published versions of the weights: number, kind, size, what they have learned, age."""
    from headrace.versions import show

    raise typer.Exit(show(_settings(config, bootstrap), as_json=as_json, num_last=num))


Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the order, for whoever asks later.")]


def pin(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="EPOCH/NUMBER, as `headrace versions` lists them.")],
    reason: Reason = "",
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Have all servers answer from one version, and stay with it, until `headrace unpin`.

    A version that is still to come is waited for. One server alone is pinned by `serving.pin` in its configuration.
    """
    from headrace.rollout import pin as run

    raise typer.Exit(run(_settings(config, bootstrap), version, reason))


def unpin(config: ConfigPath = None, bootstrap: Bootstrap = None) -> None:
    """Let servers follow the newest good version again."""
    from headrace.rollout import unpin as run

    raise typer.Exit(run(_settings(config, bootstrap)))


def rollback(
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="[VERSION]", help="EPOCH/NUMBER; default: the last of the epoch before, or the one before the last."
        ),
    ] = None,
    reason: Reason = "",
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Put all servers back to an earlier version: `headrace pin` of one that is known to be in the topic."""
    from headrace.rollout import rollback as run

    raise typer.Exit(run(_settings(config, bootstrap), version, reason))


def topics(
    create: Annotated[bool, typer.Option("--create", help="Create what is missing, with the right settings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a topic.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """List the topics of this deployment and what they hold; --create makes the missing ones."""
    from headrace.topics import show

    raise typer.Exit(show(_settings(config, bootstrap), create=create, as_json=as_json))


def audit(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Recount from the topics that nothing was lost, doubled or reordered, and that each interaction was trained once.

    Works on any deployment, while it runs or afterwards. What retention or compaction has removed cannot be recounted;
    the table says what share was. Exit status 1 on any violation.
    """
    from headrace.audit import show

    raise typer.Exit(show(_settings(config, bootstrap), as_json=as_json))


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a finding.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Check this machine and the deployment for problems; each finding comes with a remedy.

    Software, processor, GPU, memory, disks; the broker, its topics, the running processes and their lag, clocks, dead
    letters. Changes nothing. Exit status 1 if there is a problem.
    """
    from headrace.doctor import show

    raise typer.Exit(show(_settings(config, bootstrap), as_json=as_json))


def dead_letters(
    replay: Annotated[
        bool, typer.Option("--replay", help="Send those again that the configuration now accepts, each once.")
    ] = False,
    first: Annotated[
        int | None, typer.Option("--from", metavar="OFFSET", min=0, help="With --replay: begin there instead.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Show those of one reason alone.")] = None,
    num: Annotated[int, typer.Option("--last", metavar="N", min=1, help="How many, the newest last.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Count refused actions by reason, show the newest, and send them again once the cause is fixed."""
    if first is not None and not replay:
        raise typer.BadParameter("goes with --replay", param_hint="--from")
    if replay and (reason is not None or as_json):
        raise typer.BadParameter(
            "shows letters: leave it out with --replay", param_hint="--reason" if reason else "--json"
        )
    from headrace import dead_letters as letters

    settings = _settings(config, bootstrap)
    if replay:
        raise typer.Exit(letters.replay(settings, first=first))
    raise typer.Exit(letters.show(settings, num_last=num, reason=reason, as_json=as_json))


def forget(
    what: Annotated[Literal["user", "item"], typer.Argument(metavar="user|item", help="What to forget.")],
    name: Annotated[str, typer.Argument(metavar="ID", help="The id, as the producers write it.")],
    undo: Annotated[
        bool, typer.Option("--undo", help="Of an item: take it back; it is learned of as a new one.")
    ] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait until a worker has obeyed.")
    ] = 60.0,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Forget a user (his history, everywhere), or an item (it is recommended no more).

    The order goes through the actions topic, so it holds across kills, restores and replays. It says what is left, and
    for how long.
    """
    if undo and what == "user":
        raise typer.BadParameter("goes with an item: a user's history is gone", param_hint="--undo")
    from headrace.forget import forget as run

    raise typer.Exit(run(_settings(config, bootstrap), what, name, is_back=undo, wait_s=wait))


LISTED = (
    demo, worker, train, serve, produce, backfill, simulate, lag, top, versions, pin, unpin, rollback, forget, topics,
    dead_letters, audit, doctor, broker,
)  # fmt: skip
COMMANDS: dict[str, Callable[..., None]] = {each.__name__.replace("_", "-"): each for each in LISTED}
"""The commands by name, in the order in which help lists them."""


def run(prog: str, names: Sequence[str] = tuple(COMMANDS), arguments: Sequence[str] | None = None) -> int:
    """Parse ``arguments`` (None: the process's own) and run the command among ``names``; returns the exit status.

    With a single name, that command is the program itself. An error that a person can resolve is one line on stderr and
    status 1, not a traceback.
    """
    app = typer.Typer(
        help="Live user actions in, fresh recommendations out, by way of Kafka.\n\nTry it with nothing else "
        "installed: headrace demo. In production a worker, a trainer (train) and a server (serve) run side by side.",
        no_args_is_help=len(names) > 1,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # so that the lines of a docstring are joined
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in names:
        app.command(name)(COMMANDS[name])
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = names[0] if len(names) == 1 else words[0] if words and words[0] in names else ""
    try:
        app(args=words, prog_name=prog)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our pipe has gone (`headrace lag --json | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not _is_user_facing(error):
            raise
        print(f"headrace {command}: {error}", file=sys.stderr)
        return 1
    return 0


def _is_user_facing(error: Exception) -> bool:
    """Whether the message says what to do. (The modules of such errors are loaded by then.)"""
    known = (("wire.errors", "HeadraceError"), ("kafka.errors", "KafkaError"))
    return any(isinstance(error, getattr(sys.modules.get(module), name, ())) for module, name in known)


def main() -> None:
    """The console script."""
    sys.exit(run("headrace"))
