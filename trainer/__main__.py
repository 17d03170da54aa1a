"""``python -m trainer``: on Kafka; with ``--file`` on a file, without Kafka; ``--replay`` from the topics."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.config import load_settings
from headrace.logs import configure_logs
from wire.errors import HeadraceError


def calm_threads() -> None:
    """Let OpenMP's threads sleep soon when they have nothing to do; before torch is loaded.

    By default they spin for milliseconds, and on a machine that others use too the spinning takes the processor from
    whoever holds the work: 182 small steps took 155 s on two busy cores, and 5 s so.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    calm_threads()
    configure_logs()
    options = _parser().parse_args(arguments)
    settings: Any = load_settings(options.config)
    if options.bootstrap:
        kafka = dataclasses.replace(settings.kafka, bootstrap=options.bootstrap)
        settings = settings.model_copy(update={"kafka": kafka})
    if options.checkpoint_dir:
        trainer = dataclasses.replace(settings.trainer, checkpoint_dir=options.checkpoint_dir)
        settings = settings.model_copy(update={"trainer": trainer})
    from headrace.file_training import train_file
    from trainer.process import replay_topics, train_stream

    try:
        if options.file is not None:
            return train_file(settings, options.file, keep=bool(options.checkpoint_dir), as_json=options.json)
        return replay_topics(settings) if options.replay else train_stream(settings)
    except HeadraceError as error:
        print(f"headrace trainer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file (default: $HEADRACE_CONFIG, else ./headrace.toml)")
    parser.add_argument("--bootstrap", help="HOST:PORT of the Kafka broker, over the configuration's")
    parser.add_argument(
        "--checkpoint-dir", help="folder of checkpoints, over the configuration's; with --file: keep some"
    )
    parser.add_argument("--file", type=Path, help="train on this file of actions or ratings, without Kafka")
    parser.add_argument("--json", action="store_true", help="with --file: end with one JSON object")
    parser.add_argument(
        "--replay", action="store_true", help="train again from the topics what was published, and compare"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
