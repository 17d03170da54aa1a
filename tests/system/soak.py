"""Seeded kills over the whole loop, a third of them during a recovery, with an audit after each round.

    python -m tests.system.soak --seeds 1 2 --kills 50
    python -m tests.system.soak --kills 9 --broken trainer=ignores_the_plan      # has to fail

A round kills one process (-9; a worker sometimes with its disk) or the broker, and restarts it; every second round
kills again, the same one or another, while the first victim is recovering. After each round the audit recounts from the
topics. At the end, everything produced must have been learned and served exactly once.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from headrace.processes import Child, ChildError
from headrace.report import Report
from stream.sender import SendReport, send_actions
from tests.brokers import Broker, start_broker
from tests.system.loop import Loop, Watcher, explain, is_learned, try_audit
from tests.system.test_kill import AT_WORK, world

RATE = 80.0
"""Actions per second: each audit recounts all of them."""
COMES_BACK = {"worker": "worker starts", "trainer": "checkpoint loaded", "server": "headrace serving: http"}
"""What a process logs when it has begun to recover."""
VICTIMS = ("worker", "trainer", "server", "broker")


@dataclass(frozen=True)
class Round:
    """Which process is killed, which one while that recovers ("": none), and whether the worker's disk is lost too."""

    first: str
    second: str
    loses_disk: bool


def rounds_of(seed: int, num_kills: int) -> list[Round]:
    """The same seed gives the same rounds: two of three kills begin one, the third happens during the recovery."""
    chance, rounds = random.Random(seed), list[Round]()
    while num_kills > 0:
        second = chance.choice(VICTIMS) if num_kills > 1 and len(rounds) % 2 == 0 else ""
        rounds.append(Round(chance.choice(VICTIMS), second, chance.random() < 0.25))
        num_kills -= 1 + bool(second)
    return rounds


@dataclass
class Tally:
    """What was done: kills by victim, and how many of them happened during a recovery."""

    kills: Counter[str] = field(default_factory=Counter)
    num_while_recovering: int = 0
    report: Report | None = None


class Soak:
    """A loop under kills. ``say`` is called with a line for each round."""

    def __init__(
        self,
        broker: Broker,
        prefix: str,
        folder: Path,
        seed: int,
        say: Callable[[str], None],
        broken: Mapping[str, str] | None = None,
    ) -> None:
        self._broken = broken or {}
        self._broker, self._say, self._chance = broker, say, random.Random(seed + 1)
        self._loop = Loop(broker.bootstrap, prefix, folder)
        self._seen: dict[str, int] = {}
        self._children: dict[str, Child] = {}
        self._broker_since_s = -60.0
        self.tally = Tally()

    def run(self, rounds: list[Round], seconds: float = math.inf) -> Tally:
        """Run the rounds that begin within this many seconds. Raises AssertionError if a promise does not hold."""
        until_s = time.monotonic() + seconds
        with self._loop as loop, ExitStack() as stack:
            self._children = loop.start("worker", "trainer", "server", broken=self._broken)
            over, sent = threading.Event(), list[SendReport]()
            stack.callback(over.set)
            kafka = loop.settings.kafka
            sending = threading.Thread(
                target=lambda: sent.append(send_actions(world(over), kafka, rate=RATE)), daemon=True
            )
            sending.start()
            loop.wait_until(lambda: bool(loop.server.version()), 120, "a first version to be served")
            watcher = stack.enter_context(Watcher(loop.server))
            for number, each in enumerate(rounds, 1):
                if time.monotonic() > until_s:
                    break
                self._play(each)
                self._audit(f"round {number} of {len(rounds)}: {each}")
            over.set()
            sending.join(120)
            assert sent, "sending did not end"
            self._settle(sent[0])
            watcher.stop()
            assert watcher.seen == sorted(watcher.seen), "a served version went back"
        return self.tally

    def _play(self, each: Round) -> None:
        for name in self._children:
            self._loop.wait_until(lambda name=name: self._is_at_work(name), 120, f"{name} to be at work")
        before = self._num_served()
        # Of a trainer that has learned nothing since the last round there is nothing to lose.
        self._loop.wait_until(lambda: self._num_served() > before, 60, "something new to be learned and served")
        time.sleep(self._chance.uniform(0.0, 1.5))
        self._kill(each.first, each.loses_disk)
        if each.second:
            if each.first != "broker":
                mark = COMES_BACK[each.first]
                self._loop.wait_until(lambda: self._has_said(each.first, mark), 120, f"{each.first} to come back")
            time.sleep(self._chance.uniform(0.0, 0.3))
            self._kill(each.second, loses_disk=False)

    def _num_served(self) -> int:
        return int(self._loop.server.version().get("num_interactions") or 0)

    def _kill(self, name: str, loses_disk: bool) -> None:
        self.tally.kills[name] += 1
        self.tally.num_while_recovering += self._is_recovering()
        if name == "broker":
            self._broker.kill()
            time.sleep(self._chance.uniform(0.0, 1.0))
            self._broker.restart()
            self._broker_since_s = time.monotonic()
            return
        child = self._children[name]
        child.kill()
        self._seen[name] = child.log_path.stat().st_size
        if name == "worker" and loses_disk:
            shutil.rmtree(self._loop.settings.store.path, ignore_errors=True)
        time.sleep(self._chance.uniform(0.0, 0.5))
        child.start()

    def _is_recovering(self) -> bool:
        broker_is_new = time.monotonic() - self._broker_since_s < 2.0
        return broker_is_new or not all(self._is_at_work(name) for name in self._children)

    def _is_at_work(self, name: str) -> bool:
        return self._has_said(name, AT_WORK[name])

    def _has_said(self, name: str, words: str) -> bool:
        log = self._children[name].log_path.read_bytes()[self._seen.get(name, 0) :]
        return words.encode() in log

    def _audit(self, what: str) -> None:
        found: list[Report] = []

        def has_answered() -> bool:
            report = try_audit(self._loop.settings)  # None while the broker restarts
            found.extend([report] if report is not None else [])
            return bool(found)

        self._loop.wait_until(has_answered, 60, "an audit")
        [report] = found
        assert report.passed, f"{what}\n{explain(report)}"
        done = f"{self.tally.kills.total()} kills, {self.tally.num_while_recovering} while something recovered"
        self._say(f"{what}; {done}; the audit holds: {report.checks[0].found}")

    def _settle(self, sent: SendReport) -> None:
        report = self._loop.audit_when(is_learned, 180)
        assert report.passed, explain(report)
        assert is_learned(report), explain(report)
        assert report.sums["num_produced"] >= sent.num_actions
        num = report.sums["num_trained"]
        self._loop.wait_until(
            lambda: self._loop.server.version().get("num_interactions") == num, 60, "all to be served"
        )
        self.tally.report = report


def main() -> int:
    """Run it; the exit status is 1 if a promise did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run each (default: 1)")
    parser.add_argument("--kills", type=int, default=50, help="kills a run (default: 50)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no round after so long (default: all)")
    parser.add_argument("--broken", action="append", default=[], metavar="PROCESS=BUILD", help="tests.system.broken")
    parser.add_argument("--folder", type=Path, help="where state and logs go (default: a temporary one)")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        folder = arguments.folder or Path(tempfile.mkdtemp(prefix="headrace-soak-"))
        broker = start_broker(folder / f"broker-{seed}")
        if not broker.durable:
            print(
                "soak: expected real Apache Kafka (java 17+ and mvn), which keeps its records over a kill", flush=True
            )
            return 2
        print(f"seed {seed}: {arguments.kills} kills; state and logs in {folder}", flush=True)
        broken = dict(each.split("=", 1) for each in arguments.broken)
        soak = Soak(
            broker, f"soak{seed}", folder / f"seed-{seed}", seed, lambda line: print(f"  {line}", flush=True), broken
        )  # fmt: skip
        try:
            tally = soak.run(rounds_of(seed, arguments.kills), arguments.seconds)
        except (AssertionError, ChildError) as error:
            print(f"seed {seed}: {error}", flush=True)
            return 1
        finally:
            broker.stop()
        kills = ", ".join(f"{name} {num}" for name, num in sorted(tally.kills.items()))
        assert tally.report is not None
        print(
            f"seed {seed}: {kills}; {tally.num_while_recovering} while something recovered; {tally.report.sums}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
