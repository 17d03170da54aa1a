"""A request as another server is asked it."""

from __future__ import annotations

from dataclasses import dataclass

MARK, ANSWERED = "x-headrace-forwarded", "x-headrace-server"
"""The headers of a forwarded request and of its answer. The first holds the deployment, its number of partitions and
the line of training, in which both servers must agree; the second, the name of the server that answers."""


@dataclass(frozen=True, slots=True)
class Question:
    """``target``: path and query; ``token``: the header authorization, or None."""

    method: str
    target: str
    body: bytes
    token: str | None


def mark_of(prefix: str, num_partitions: int, line: str) -> str:
    """The value of `MARK`."""
    return f"{prefix} {num_partitions} {line}".rstrip()
