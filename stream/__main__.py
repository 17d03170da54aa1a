"""``python -m stream worker|replay|simulate|topics``, on the same configuration as all of Headrace."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.config import load_settings
from wire.errors import HeadraceError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the part that it names; returns the exit status."""
    options = _parser().parse_args(arguments)
    settings: Any = load_settings(options.config)
    if options.bootstrap:
        kafka = dataclasses.replace(settings.kafka, bootstrap=options.bootstrap)
        settings = settings.model_copy(update={"kafka": kafka})
    try:
        return int(_run(options, settings))
    except KeyboardInterrupt:
        return 130
    except HeadraceError as error:
        print(f"headrace stream: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, settings: Any) -> int:
    if options.command == "worker":
        from headrace.logs import configure_logs
        from stream.worker import run_worker

        configure_logs()
        return run_worker(settings)
    if options.command == "replay":
        from stream.replay import replay

        return replay(settings, options.file, rate=options.rate, limit=options.limit)
    if options.command == "simulate":
        from stream.live import simulate

        return simulate(settings, rate=options.rate, num_actions=options.num_actions, seed=options.seed)
    from stream.topics import ensure_topics

    for name in ensure_topics(settings.kafka, settings.stream.start_timeout_s):
        print(f"created {name}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m stream", description="Headrace's stream processes.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, help="TOML file; default: $HEADRACE_CONFIG, then ./headrace.toml")
    common.add_argument("--bootstrap", metavar="HOST:PORT", help="broker, instead of the configured one")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("worker", parents=[common], help="keep sequences: actions in, examples out")
    commands.add_parser("topics", parents=[common], help="create the missing topics, check the others")
    replay = commands.add_parser("replay", parents=[common], help="send a file of actions")
    replay.add_argument("file", type=Path)
    simulate = commands.add_parser("simulate", parents=[common], help="send the actions of a simulated world")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--num-actions", type=int, help="stop after so many; default: never")
    for command in (replay, simulate):
        command.add_argument("--rate", type=float, help="actions/s; default: as fast as it goes")
    replay.add_argument("--limit", type=int, help="stop after so many actions")
    return parser


if __name__ == "__main__":
    sys.exit(main())
