"""Children are watched, quoted when they die, and never outlive their group."""

import os
from pathlib import Path

import pytest

from headrace.processes import ChildError, DeadlineError, ProcessGroup

SLEEP = "import time; print('up', flush=True); time.sleep(600)"


def said(group: ProcessGroup, text: str) -> bool:
    return text in group.children[0].log_path.read_text()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_leaving_the_block_ends_every_child(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path, {}) as group:
        child = group.start("one", "-c", SLEEP)
        group.wait_until(lambda: said(group, "up"), 60, "the child to speak")
        pid = child.pid
    assert gone(pid)


def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path, {}) as group:
        child = group.start("deaf", "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP)
        group.wait_until(lambda: said(group, "up"), 60, "the child to speak")
        child.stop(timeout_s=0.2)
        assert not child.is_running()


def test_a_child_that_dies_is_quoted(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path, {}) as group:
        group.start("worker", "-c", "import sys; print('no such topic'); sys.exit(7)")
        with pytest.raises(ChildError, match=r"(?s)worker ended with status 7; .*no such topic"):
            group.wait_until(lambda: False, 60, "nothing")


def test_what_was_awaited_in_vain_is_named(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path, {}) as group:
        group.start("one", "-c", SLEEP)
        with pytest.raises(DeadlineError, match=r"waited 0 s for: a miracle"):
            group.wait_until(lambda: False, 0.1, "a miracle")


def test_children_see_their_environment_and_this_checkout(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path, {"HEADRACE_KAFKA__PREFIX": "x"}) as group:
        script = "import os, state; print(os.environ['HEADRACE_KAFKA__PREFIX'], state.__file__)"
        child = group.start("one", "-c", script, env={"MORE": "1"})
        assert child.wait(60) == 0
        assert child.log_path.read_text().split()[0] == "x"
        root = Path(__file__).resolve().parents[2]
        assert child.log_path.read_text().split()[1] == str(root / "state" / "__init__.py")
