"""A thread beside the interpreter, where a process ends or drops it: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

_BEGIN = """
import os, sys
from kernels.beside import Beside
from kernels.odds import OddsRules, odds_begin, odds_learn
from tests.kernels.test_odds import Stream

stream = Stream(num_events=200)
events = stream.events()

def begun(beside):
    return odds_begin(stream.empty(), stream.nothing_kept(), events, OddsRules(), beside=beside)
"""


def ran(script: str) -> str:
    """What a process that runs the script writes."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout.strip()


def test_what_is_computed_may_be_dropped_with_all_that_it_reads_and_writes() -> None:
    """As a trainer drops a learner whose step it undoes: the thread may still write logits that nobody waits for."""
    script = """
class Learner: pass
for _ in range(3000):
    learner = Learner()
    learner.beside = Beside()
    learner.begun = begun(learner.beside)
    del learner
print("ended")
"""
    assert ran(script) == "ended"


def test_a_fork_computes_and_ends_without_the_thread() -> None:
    script = """
import signal
beside = Beside()
expected = begun(beside)()
child = os.fork()
if not child:
    signal.alarm(20)
    same = (begun(beside)() == expected).all()
    sys.exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert ran(script) == "0"


def test_without_room_for_a_thread_the_caller_computes() -> None:
    """Its stack needs more memory than the process may have."""
    script = """
import resource
expected = odds_learn(stream.empty(), stream.nothing_kept(), events, OddsRules())
beside = Beside()
num_threads = len(os.listdir("/proc/self/task"))
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 20), resource.RLIM_INFINITY))
for _ in range(3):
    assert (begun(beside)() == expected).all()
assert len(os.listdir("/proc/self/task")) == num_threads
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert (begun(beside)() == expected).all()
assert len(os.listdir("/proc/self/task")) == num_threads + 1
print("the same")
"""
    assert ran(script) == "the same"


def test_what_a_step_that_failed_has_begun_does_not_stop_the_next() -> None:
    script = """
beside = Beside()
expected = begun(beside)()
for _ in range(100):
    begun(beside)
    assert (begun(beside)() == expected).all()
print("the same")
"""
    assert ran(script) == "the same"
