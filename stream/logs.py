"""Logging of the stream's processes: structlog, JSON lines in containers, readable lines on a terminal."""

from __future__ import annotations

import logging
import sys

import structlog

QUIET = {
    # Each of its tasks says ten times a second that the broker is away; the worker says so itself, once.
    "aiokafka": logging.CRITICAL,
    "kafka": logging.CRITICAL,
    "faust": logging.ERROR,
    "mode": logging.ERROR,
    "asyncio": logging.ERROR,
}
"""Libraries that say at length what this code handles, and what is still heard of them."""


def configure_logs(level: int = logging.INFO) -> None:
    """Send our words and the libraries' warnings to stderr, one line each."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    people = sys.stderr.isatty()
    last: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(sort_keys=False)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    finish: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not people:
        finish.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*finish, last]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, heard in QUIET.items():
        logging.getLogger(name).setLevel(heard)


log: structlog.stdlib.BoundLogger = structlog.get_logger("stream")
