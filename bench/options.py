"""Options that measurements share. Importing this needs no other package, since some measurements have only torch."""

from __future__ import annotations

import argparse
import logging
from itertools import islice
from pathlib import Path
from typing import Any


def parser_of(name: str, text: str | None) -> argparse.ArgumentParser:
    """A measurement's parser: ``text`` is its description; options ``--quick`` and ``--out``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="within a minute or two: less of everything")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON object here as well")
    return parser


def add_stream(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the options of a measurement over a stream (``default``; None: over several, ``streams``)."""
    from bench.streams.named import STREAMS

    if default is None:
        parser.add_argument("streams", nargs="*", metavar="STREAM", help=f"of {', '.join(STREAMS)}")
    else:
        parser.add_argument("stream", nargs="?", default=default, choices=sorted(STREAMS), metavar="STREAM",
                            help=f"of {', '.join(STREAMS)}; default: {default}")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the folder of the streams that need files")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N actions")


def actions_of(stream: str, options: argparse.Namespace, quick_actions: int) -> list[dict[str, Any]]:
    """The stream's actions: the first ``--limit``, with ``--quick`` the first ``quick_actions``."""
    from bench.streams.named import open_stream

    quiet()
    limit = options.limit or (quick_actions if options.quick else None)
    return list(islice(open_stream(stream, options.data), limit))


def quiet() -> None:
    """Log nothing below a warning."""
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
