"""The commands that run a process: worker, trainer, server, the demo and its broker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.commands.options import Bootstrap, ConfigPath, read_settings

if TYPE_CHECKING:
    from headrace.config import Settings


def start_logging() -> None:
    """Configure the logs before anything may log."""
    from headrace.logs import configure_logs

    configure_logs()


def _doubt(settings: Settings) -> None:
    from headrace.unusual import warn

    warn(settings)


DespiteAdded = Annotated[
    bool,
    typer.Option(
        "--despite-added-partitions",
        help="Work off the first kafka.partitions of topics that were given more, before `headrace repartition`.",
    ),
]


def worker(config: ConfigPath = None, bootstrap: Bootstrap = None, despite_added: DespiteAdded = False) -> None:
    """Turn actions into sequences: the actions topic in, examples for the trainer out.

    Several workers share the partitions. Give each a `stream.component` name and a disk of its own.
    """
    settings = read_settings(config, bootstrap)
    from stream.worker import run_worker

    start_logging()
    _doubt(settings)
    raise typer.Exit(run_worker(settings, despite_added=despite_added))


def replay(
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="EPOCH/NUMBER, as `headrace versions` lists them.")
    ] = None,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Repeat the training of a published version (default: the newest) from the topics, and compare the weights.

    Changes nothing. Exit status 1 if a single bit differs. The topics must still have the examples and the steps.
    """
    from wire.control import parse_version

    which = parse_version(version) if version is not None else None
    _let_idle_threads_sleep()
    start_logging()
    settings = read_settings(config, bootstrap)
    from trainer.process import replay_topics

    raise typer.Exit(replay_topics(settings, which))


def train(
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Train on this file of actions or ratings, without Kafka."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --file: end with one JSON object.")] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Repeat the published steps from the topics, and compare the weights.")
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
    despite_added: DespiteAdded = False,
) -> None:
    """Train on the stream of examples in one pass, and publish the weights every few seconds.

    Started by torchrun, several processes compute its steps (`trainer.shards`).
    """
    if as_json and file is None:
        raise typer.BadParameter("goes with --file", param_hint="--json")
    about_topics = {
        "--replay": replay, "--take-over": take_over, "--from-published": from_published,
        "--despite-added-partitions": despite_added,
    }  # fmt: skip
    if file is not None and (given := [name for name, is_given in about_topics.items() if is_given]):
        raise typer.BadParameter("is about the topics: leave --file out", param_hint=given[0])
    _let_idle_threads_sleep()
    start_logging()
    settings = read_settings(
        config, bootstrap, **({} if checkpoint_dir is None else {"checkpoint_dir": checkpoint_dir})
    )
    _doubt(settings)
    if file is not None:
        from headrace.file_training import train_file

        raise typer.Exit(train_file(settings, file, keep=checkpoint_dir is not None, as_json=as_json))
    from trainer.process import replay_topics, train_stream

    raise typer.Exit(
        replay_topics(settings)
        if replay
        else train_stream(settings, take_over=take_over, from_published=from_published, despite_added=despite_added)
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
    settings = read_settings(config, bootstrap)
    _let_idle_threads_sleep()
    from serving.process import run_server

    start_logging()
    _doubt(settings)
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
        float | None, typer.Option("--duration", metavar="SECONDS", min=1, help="Stop sending after this long.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Plain lines, and one JSON object as the last.")] = False,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FOLDER", help="Leave state, checkpoints and logs in this folder.")
    ] = None,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep it running at the end, with its page to look at, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="PORT", min=1, max=65535, help="The page's port; default: any free one."),
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
