"""What the operating system does not let a process have: files, memory, threads, space. One line says so."""

from __future__ import annotations

import resource

MIN_FILES = 128
"""Libraries that find no file left neither wait nor say so: one aborts the process, another takes the broker for
away. A server opens forty, and one more for each connection."""
MAX_FILES = 65_536
_MEMORY = ("failed to map segment", "can't allocate memory", "Cannot allocate memory")


def raise_file_limit() -> str:
    """Raise the limit on open files as far as the system allows: it is often 1,024 only for programs that use
    ``select``. Returns what to do if that is too low, or nothing."""
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
    """What to tell a person about an error of the system, or nothing if ``error`` is not one."""
    text = str(error)
    if isinstance(error, MemoryError) or any(each in text for each in _MEMORY):
        return f"expected enough memory, the system refused some ({text or 'it does not say how much'}); give it more"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or text} (errno {error.errno}); correct it, then start again"
    if "can't start new thread" in text:
        return "expected to start a thread, the system refused it; raise the limit on processes (ulimit -u), or memory"
    return ""
