"""What the system does not let a process have is one line, whatever it is and whichever library missed it."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import headrace.command
from headrace.command import run
from headrace.system_limits import MIN_FILES, MIN_THREADS, raise_file_limit, system_error, too_few_threads
from tests.brokers import REPOSITORY

LIMITED = """
import resource, sys
resource.setrlimit(getattr(resource, sys.argv[1]), (int(sys.argv[2]), int(sys.argv[2])))
from headrace.command import run
sys.exit(run("headrace", arguments=sys.argv[3:]))
"""


@pytest.mark.parametrize("command", ["serve", "worker", "train", "lag"])
def test_a_process_that_may_open_too_few_files_says_so_before_a_library_aborts_it(command: str, tmp_path: Path) -> None:
    done = limited("RLIMIT_NOFILE", 24, command, tmp_path)
    assert done.stderr.startswith(f"headrace {command}: expected a limit of at least {MIN_FILES} open files, got 24;")


@pytest.mark.parametrize("command", ["serve", "worker", "train"])
def test_a_process_whose_threads_may_have_no_stack_says_so_before_one_needs_it(command: str, tmp_path: Path) -> None:
    done = limited("RLIMIT_STACK", 64 << 10, command, tmp_path)
    assert done.stderr.startswith(f"headrace {command}: expected a stack of at least 1024 kB, got 64 kB; raise it ")


def test_a_process_without_memory_for_its_libraries_says_so(tmp_path: Path) -> None:
    done = limited("RLIMIT_AS", 1 << 30, "train", tmp_path)
    assert done.stderr.startswith("headrace train: expected enough memory, the system refused some (")


FEW_THREADS = """
import resource, sys
from headrace.command import run
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)  # a thread's stack has 8 MiB
sys.exit(run("headrace", arguments=sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["serve", "worker", "train"])
def test_a_process_that_may_start_too_few_threads_says_so_before_a_library_aborts_it(
    command: str, tmp_path: Path
) -> None:
    done = with_few_threads([command], tmp_path)
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stderr.count("\n") == 1, done.stderr[-2000:]
    assert done.stderr.startswith(f"headrace {command}: expected to start {MIN_THREADS} threads, the system refused ")
    assert "(ulimit -u, systemd's TasksMax, docker's --pids-limit)" in done.stderr


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["worker", "--help"], ["topics", "--help"]], ids=" ".join)
def test_what_needs_no_threads_is_told_without_them(words: list[str], tmp_path: Path) -> None:
    done = with_few_threads(words, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_commands_that_look_into_what_is_wrong_do_so_with_few_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(headrace.command, "too_few_threads", lambda: "too few threads")
    assert run("headrace", arguments=["lag", "--bootstrap", "127.0.0.1:1"]) == 1
    assert "no Kafka broker answers at 127.0.0.1:1" in " ".join(capsys.readouterr().err.split())
    assert run("headrace", arguments=["worker"]) == 1
    assert capsys.readouterr().err == "headrace worker: too few threads\n"


def with_few_threads(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command for which the system has no room for more than eight threads."""
    return subprocess.run(
        [sys.executable, "-c", FEW_THREADS, *words], cwd=folder, env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_process_that_may_start_as_many_threads_as_it_needs_leaves_none() -> None:
    before = threading.active_count()
    assert too_few_threads() == ""
    assert threading.active_count() == before


def limited(limit: str, value: int, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command under a limit of the system; it ends with one line."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, str(value), command], cwd=folder, env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stderr.count("\n") == 1, done.stderr[-2000:]
    return done


def test_the_limit_on_open_files_is_raised_as_far_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        assert raise_file_limit() == ""
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65_536), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied (errno 13); correct it"),
        (OSError(24, "Too many open files"), "Too many open files (errno 24)"),
        (MemoryError(), "expected enough memory, the system refused some (it does not say how much)"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "expected enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"), "expected enough memory"),
        (RuntimeError("can't start new thread"), "raise the limit on processes"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_the_system_are_told_and_no_others(error: Exception, words: str) -> None:
    assert words in system_error(error)
    assert system_error(ValueError("a mistake of ours")) == ""
