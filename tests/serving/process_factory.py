"""Servers for `tests.process_factory`: ``serving.__main__`` as it is."""

from __future__ import annotations

from collections.abc import Sequence

from tests.process_factory import serve_children


def run(arguments: Sequence[str], _broken: Sequence[str], _point: str) -> int:
    """One server's life; the exit status."""
    import serving.__main__

    return serving.__main__.main(arguments)


if __name__ == "__main__":
    import serving.__main__
    import serving.process  # noqa: F401

    serve_children(run)
