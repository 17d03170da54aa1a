"""Limits of the operating system: files, memory, threads, disk space. An error about one of them is one line."""

from __future__ import annotations

import resource

MIN_FILES = 128
"""Libraries that cannot open another file neither wait nor report it: one aborts the process, another treats the broker
as unavailable. A server opens forty files, and one more for each connection."""
MAX_FILES = 65_536
_MEMORY = ("failed to map segment", "can't allocate memory", "Cannot allocate memory")


def raise_file_limit() -> str:
    """Raise the limit on open files as far as the system allows; it is often 1,024 for the sake of programs that use
    ``select``. Returns what to do if it is still too low, otherwise an empty string."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft == resource.RLIM_INFINITY or soft >= MIN_FILES:
        return ""
    return (
        f"expected a limit of at least {MIN_FILES} open files, got {soft}; raise it (ulimit -n, systemd's LimitNOFILE, "
        "docker's --ulimit nofile)"
    )


def system_error(error: Exception) -> str:
    """One line about an error of the operating system; empty if ``error`` is not one."""
    text = str(error)
    if isinstance(error, MemoryError) or any(each in text for each in _MEMORY):
        return f"expected enough memory, the system refused some ({text or 'it does not say how much'}); give it more"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or text} (errno {error.errno}); correct it, then start again"
    if "can't start new thread" in text:
        return "expected to start a thread, the system refused it; raise the limit on processes (ulimit -u), or memory"
    return ""
