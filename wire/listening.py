"""What to say about an address at which a process cannot listen."""

from __future__ import annotations

import errno


def refused_address(section: str, prefix: str, host: str, port: int, error: OSError) -> str:
    """One line about ``[section] PREFIXhost`` and ``PREFIXport``: the one that is to blame, what came, what to do."""
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        key, advice = "port", f"stop the process that uses it, or set another {section}.{prefix}port"
    else:
        key, advice = "host", "set an address of this machine, or 0.0.0.0 for all of them"
    return f"{section}.{prefix}{key}: expected to listen on {host}:{port}, got: {error.strerror}; {advice}"
