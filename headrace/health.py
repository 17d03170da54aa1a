"""``python -m headrace.health URL``: exit status 0 if the address answers 2xx. The containers' health check."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 3.0
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Docker hands its proxy settings to every container, and no proxy reaches a container's own address."""


def is_healthy(url: str) -> bool:
    """Whether ``url`` answers 2xx within three seconds."""
    try:
        with _DIRECTLY.open(url, timeout=TIMEOUT_S):
            return True  # any other answer is raised
    except (urllib.error.URLError, OSError, ValueError):
        return False


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m headrace.health URL")
    sys.exit(0 if is_healthy(sys.argv[1]) else 1)
