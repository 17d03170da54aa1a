"""Child processes with their logs: started together, watched, and ended cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.broker import ends_with_parent
from wire.errors import HeadraceError

ROOT = Path(__file__).resolve().parent.parent
STOP_TIMEOUT_S = 15.0


class ChildError(HeadraceError):
    """A process that should be running has ended; the message quotes the end of its log."""


class DeadlineError(HeadraceError):
    """Something did not happen in time; the message says what."""


class Child:
    """One ``python -m ROOM …`` process, its output in a log file."""

    def __init__(self, name: str, arguments: Sequence[str], *, log_path: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.log_path = log_path
        self.env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; raises `ChildError` if it was never started."""
        if self._process is None:
            raise ChildError(f"{self.name} was not started")
        return self._process.pid

    def start(self) -> Self:
        """Start it, or start it again. Its log is appended to."""
        environment = {**os.environ, **self.env, "PYTHONUNBUFFERED": "1"}
        path = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*ends_with_parent(), sys.executable, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # In its own session: Ctrl-C in a terminal reaches only the parent, which ends its children in order.
                start_new_session=True,
            )
        return self

    def is_running(self) -> bool:
        """Whether it is running."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise `ChildError` with the end of its log if it has ended."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise ChildError(f"{self.name} ended with status {status}; the end of its log:\n{self.last_lines()}")

    def last_lines(self, num_lines: int = 15) -> str:
        """The end of its log."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(f"    {line}" for line in lines[-num_lines:]) or "    (its log is empty)"

    def wait(self, timeout_s: float) -> int:
        """Wait for it to end by itself; returns the exit status. Raises `subprocess.TimeoutExpired`."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def interrupt(self) -> None:
        """Ask it to end (SIGTERM); do not wait."""
        if self.is_running() and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """Ask it to end and wait; kill it after ``timeout_s``. Returns the exit status."""
        if self._process is None:
            return None
        self.interrupt()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode


class ProcessGroup:
    """Processes that run together: leaving the block ends them all, in reverse order of their start."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.env = dict(env)
        self.children: list[Child] = []

    def start(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
        """Start ``python ARGUMENTS…``; its log goes to ``folder/NAME.log``."""
        child = Child(name, arguments, log_path=self.folder / f"{name}.log", env={**self.env, **(env or {})})
        self.children.append(child)
        return child.start()

    def check(self) -> None:
        """Raise `ChildError` for the first child that has ended."""
        for child in self.children:
            child.check()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.1) -> None:
        """Poll until ``condition`` holds. Raises `ChildError`, or `DeadlineError` naming ``what``."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                logs = "\n".join(f"  {child.name}:\n{child.last_lines(4)}" for child in self.children)
                raise DeadlineError(f"waited {timeout_s:.0f} s for: {what}; the ends of the logs:\n{logs}")
            time.sleep(every_s)

    def stop(self) -> None:
        """End them all in reverse order, so that none loses one it depends on."""
        for child in reversed(self.children):
            child.interrupt()
        for child in reversed(self.children):
            child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
