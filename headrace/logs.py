"""How every process logs: with structlog, to stderr; JSON lines in containers, readable lines on a terminal."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

FIRST = ("timestamp", "level", "logger", "event")
"""The first keys of each JSON line."""
QUIET = {
    # While the broker is away, each of their tasks reports it ten times a second; our processes report it once.
    "aiokafka": logging.CRITICAL,
    "kafka": logging.CRITICAL,
    "faust": logging.ERROR,
    "mode": logging.ERROR,
    "stream.transport": logging.WARNING,  # mode's, of our classes: that each starts and stops
    "asyncio": logging.ERROR,
    "uvicorn.error": logging.WARNING,
}
"""Libraries that log at length what this code handles anyway, and the level from which they are logged."""


def configure_logs(level: int = logging.INFO) -> None:
    """Log our messages and the libraries' warnings to stderr, one line each."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    people = sys.stderr.isatty()
    last: Processor = structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(sort_keys=False)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    finish: list[Processor] = [_without_known_traces, structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not people:
        finish += [structlog.processors.format_exc_info, _in_order]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*finish, last]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, heard in QUIET.items():
        logging.getLogger(name).setLevel(heard)


def _without_known_traces(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Leave the traceback out where a library logs an error that ends the process with a line of its own."""
    error = line.get("exc_info")
    error = error[1] if isinstance(error, tuple) else error
    if isinstance(error, BaseException):
        from wire.kafka.refusal import refusal

        if refusal(error, ""):
            del line["exc_info"]
    return line


def _in_order(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    return {**{key: line[key] for key in FIRST if key in line}, **line}
