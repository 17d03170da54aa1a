"""Workers for `tests.process_factory`: ``stream.__main__`` as it is, or as a broken build (`tests.stream.broken`)."""

from __future__ import annotations

from collections.abc import Sequence

from tests.process_factory import serve_children


def run(arguments: Sequence[str], broken: Sequence[str], _point: str) -> int:
    """Run one worker; returns the exit status."""
    import stream.__main__
    from tests.stream import broken as builds

    for name in broken:
        getattr(builds, name)()
    return stream.__main__.main(arguments)


if __name__ == "__main__":
    import stream.worker  # noqa: F401  (loaded once for all of them)
    import tests.stream.broken  # noqa: F401

    serve_children(run)
