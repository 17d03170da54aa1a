"""The processes of a loop, forked instead of started: ``python -m stream | trainer | serving``, or a broken build.

`ForkedGroup` is a `headrace.processes.ProcessGroup` whose children come from one process that has loaded everything:
the loops of these tests start dozens, and loading torch takes two seconds of processor time.
"""

from __future__ import annotations

import atexit
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from headrace.processes import Child, ProcessGroup
from tests.process_factory import Forked, ProcessFactory, serve_children

FORKED = ("stream", "trainer", "serving", "tests.system.broken")
"""Modules that may find everything loaded. One that changes the clock (`tests.system.skewed`) has to come before it."""


@cache
def factory() -> ProcessFactory:
    """The one of this process; ended with it."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-loops-"))
    made = ProcessFactory(folder, "system")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(made.close)
    return made


class ForkedChild(Child):
    """A child whose arguments are ``-m MODULE …``."""

    _process: Any

    def start(self) -> Self:
        """Start it, or start it again. Its log is appended to."""
        self._process = Forked(factory().start(self.arguments[1:], environment=self.env, log=self.log_path))
        return self


class ForkedGroup(ProcessGroup):
    """Processes that run together; those of `FORKED` are forked, others started."""

    def start(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
        """Run ``python ARGUMENTS…``; its log goes to ``folder/NAME.log``."""
        if arguments[1] not in FORKED:
            return super().start(name, *arguments, env=env)
        log_path = self.folder / f"{name}.log"
        child = ForkedChild(name, arguments, log_path=log_path, env={**self.env, **(env or {})})
        self.children.append(child)
        return child.start()


def headrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``python -m headrace ARGUMENTS…`` does, forked too; `tests.system.test_operations` starts each command."""
    with tempfile.TemporaryDirectory(prefix="headrace-command-") as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        child = factory().start(["headrace", *arguments], environment=environment, log=out, errors=errors)
        try:
            status = child.wait(120)
        finally:
            child.kill()
        return subprocess.CompletedProcess(arguments, status, out.read_text(), errors.read_text())


def run(arguments: Sequence[str], _broken: Sequence[str], _point: str) -> int:
    """Run a module as ``python -m`` does; its exit status is that of the `SystemExit` that it ends with."""
    module, *rest = arguments
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    for name in ("headrace.command", "stream.worker", "trainer.process", "trainer.replay", "serving.process"):
        import_module(name)
    serve_children(run)
