"""Limits of the operating system: files, memory, threads, stacks, disk space. An error about one is one line."""

from __future__ import annotations

import resource
import threading

MIN_FILES = 128
"""Libraries that cannot open another file neither wait nor report it: one aborts the process, another treats the broker
as unavailable. A server opens forty files, and one more for each connection."""
MAX_FILES = 65_536
MIN_STACK_BYTES = 1 << 20
"""With less, a thread that calls deeply ends the process without a word."""
MIN_THREADS = 16
"""Libraries that cannot start a thread abort the process, with words of their own. A worker has nine, a trainer eleven
or more, a server sixteen."""
_MORE_THREADS = (
    "raise the limit on processes (ulimit -u, systemd's TasksMax, docker's --pids-limit) "
    "or on address space (ulimit -v)"
)
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


def too_small_stack() -> str:
    """What to do if threads may have too small a stack; otherwise an empty string."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft >= MIN_STACK_BYTES:
        return ""
    return (
        f"expected a stack of at least {MIN_STACK_BYTES >> 10} kB, got {soft >> 10} kB; raise it (ulimit -s, systemd's "
        "LimitSTACK, docker's --ulimit stack)"
    )


def too_few_threads() -> str:
    """What to do if this process cannot start as many threads as it needs; otherwise an empty string."""
    end, started = threading.Event(), list[threading.Thread]()
    try:
        for _ in range(MIN_THREADS):
            thread = threading.Thread(target=end.wait)
            thread.start()
            started.append(thread)
    except RuntimeError:
        return f"expected to start {MIN_THREADS} threads, the system refused number {len(started) + 1}; {_MORE_THREADS}"
    finally:
        end.set()
        for thread in started:
            thread.join()
    return ""


def system_error(error: Exception) -> str:
    """One line about an error of the operating system; empty if ``error`` is not one."""
    text = str(error)
    if isinstance(error, MemoryError) or any(each in text for each in _MEMORY):
        what = text or "it does not say how much"
        return f"expected enough memory, the system refused some ({what}); give it more (address space too: ulimit -v)"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or text} (errno {error.errno}); correct it, then start again"
    if "can't start new thread" in text:
        return f"expected to start a thread, the system refused it; {_MORE_THREADS}"
    return ""
