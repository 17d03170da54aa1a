"""Processes that start instantly: ``python -m tests.<room>.process_factory`` imports everything once, then forks.

Each child is a separate process (to be stopped, continued, killed with -9) that runs the room's ``__main__``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.brokers import REPOSITORY, wait_until

PR_SET_PDEATHSIG = 1
Live = Callable[[Sequence[str], Sequence[str], str], int]
"""Runs a child with its arguments, broken builds and point; returns the exit status."""


class Child:
    """One process and its log."""

    def __init__(self, pid: int, log_path: Path, exit_path: Path) -> None:
        self.pid, self.log_path, self._exit_path = pid, log_path, exit_path

    @property
    def status(self) -> int | None:
        """Exit status (negative: the signal that ended it), or None while it runs."""
        return int(self._exit_path.read_text()) if self._exit_path.exists() else None

    def log(self) -> str:
        """The log of this process so far."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def send(self, signal_number: signal.Signals) -> None:
        if self.status is None:
            with suppress(ProcessLookupError):  # it has just ended, and that is not written yet
                os.kill(self.pid, signal_number)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self.send(signal.SIGKILL)
        self.wait(60)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.send(signal.SIGTERM)
        return self.wait(60)

    def wait(self, timeout_s: float = 60) -> int:
        """Wait until it ends by itself; returns the exit status."""
        self._until(lambda: self.status is not None, timeout_s, "its end")
        assert self.status is not None
        return self.status

    def is_stopped(self) -> bool:
        """Whether it has stopped itself with SIGSTOP."""
        assert self.status is None, self.log()
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        """Wait until its log says ``text``."""
        self._until(lambda: text in self.log(), timeout_s, repr(text))

    def _until(self, condition: Any, timeout_s: float, what: str) -> None:
        try:
            wait_until(condition, timeout_s, what, every_s=0.01)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-3000:]}") from None


class Forked:
    """A child with the interface of `subprocess.Popen`."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.pid = child.pid

    @property
    def returncode(self) -> int | None:
        return self._child.status

    def poll(self) -> int | None:
        return self._child.status

    def wait(self, timeout: float = 60.0) -> int:
        try:
            return self._child.wait(timeout)
        except AssertionError:
            raise subprocess.TimeoutExpired(str(self._child.log_path), timeout) from None

    def send_signal(self, number: signal.Signals) -> None:
        self._child.send(number)

    def kill(self) -> None:
        self._child.send(signal.SIGKILL)

    def terminate(self) -> None:
        self._child.send(signal.SIGTERM)


class ProcessFactory:
    """The test's handle on the parent of the children. For any number of threads."""

    def __init__(self, folder: Path, room: str, environment: Mapping[str, str] | None = None) -> None:
        self._folder, self._num, self._lock = folder, 0, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "factory.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"tests.{room}.process_factory"], env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=REPOSITORY, text=True,
            )  # fmt: skip

    def start(
        self, arguments: Sequence[str], broken: Sequence[str] = (), point: str = "",
        environment: Mapping[str, str] | None = None, log: Path | None = None, errors: Path | None = None,
    ) -> Child:  # fmt: skip
        """Start a child with this command line. ``broken``, ``point``: see `tests.trainer.process_factory`.

        ``environment`` is added to the factory's own; the child appends to ``log``, and to ``errors`` what it writes to
        stderr.
        """
        with self._lock:
            self._num += 1
            return self._start(arguments, broken, point, environment, log, errors)

    def _start(
        self, arguments: Sequence[str], broken: Sequence[str], point: str, environment: Mapping[str, str] | None,
        log: Path | None, errors: Path | None,
    ) -> Child:  # fmt: skip
        log, ended = log or self._folder / f"{self._num}.log", self._folder / f"{self._num}.exit"
        order = {
            "arguments": list(arguments),
            "broken": list(broken),
            "point": point,
            "environment": dict(environment or {}),
            "log": str(log),
            "errors": str(errors or log),
            "exit": str(ended),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Child(int(self._process.stdout.readline()), log, ended)

    def close(self) -> None:
        """End it and all children."""
        self._process.kill()
        self._process.wait(60)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


# What every command imports when it runs.
COMMAND_MODULES = ("encodings.idna", "headrace.config", "headrace.logs", "numpy.random", "typer._adapters")


def serve_children(live: Live) -> None:
    """Fork a child for each line of stdin; write to a file how each ends."""
    for name in COMMAND_MODULES:
        import_module(name)
    gc.collect()
    gc.freeze()  # a child that collects garbage would copy every page of what is here
    exits: dict[int, Path] = {}

    def reap(*_: Any) -> None:
        while exits:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            path = exits.pop(pid)
            path.with_suffix(".tmp").write_text(str(os.waitstatus_to_exitcode(status)))
            path.with_suffix(".tmp").rename(path)

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        order = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            _begin(live, order)
        exits[pid] = Path(order["exit"])
        print(pid, flush=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _begin(live: Live, order: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    log, errors = (os.open(order[each], os.O_WRONLY | os.O_CREAT | os.O_APPEND) for each in ("log", "errors"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (errors, 2)):
        os.dup2(source, target)
    os.environ.update(order["environment"])
    status = 70
    try:
        status = live(order["arguments"], order["broken"], order["point"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 71
    except BaseException:  # noqa: BLE001  (a child must never go on in its parent's loop)
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
