"""A whole deployment under a test's control: worker, trainer and server as processes, on the broker of the tests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kafka.errors import KafkaError

from headrace.audit import audit
from headrace.config import Settings, read_settings
from headrace.processes import Child
from headrace.recommendation import Server
from headrace.report import Report
from tests.brokers import crowding, free_port, wait_until
from tests.system.process_factory import ForkedGroup
from wire.errors import BrokerUnavailable, TopicMissing
from wire.kafka.admin import ensure_topics

KINDS = ["impression", "click", "like", "share", "hide"]


class Loop:
    """Use as a context manager: everything that was started is ended."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path, **sections: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        defaults: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap": bootstrap, "prefix": prefix, "partitions": 2},
            "action": {"kinds": KINDS},
            "sequence": {"join_window_s": 20.0, "max_context": 20, "segment_len": 8},
            "store": {"path": str(folder / "store")},
            "stream": {
                "metrics_port": 0, "session_timeout_s": 2.0, "heartbeat_s": 0.4, "rebalance_timeout_s": 4.0,
                "commit_interval_s": 0.3, "max_batch": 50,
            },
            "model": {"num_layers": 1, "model_width": 16, "qk_width": 8, "value_width": 8, "item_width": 16},
            "trainer": {
                "checkpoint_dir": str(folder / "checkpoints"), "checkpoint_every_s": 2.0, "publish_every_s": 0.3,
                "base_every": 10, "num_threads": 1, "deterministic": True, "device": "cpu",
            },
            "serving": {"port": port, "name": f"server-{prefix}"},
        }  # fmt: skip
        for name, keys in sections.items():
            defaults[name] = {**defaults.get(name, {}), **keys}
        self.path = folder / "headrace.toml"
        self.path.write_text("\n".join(_section(name, keys) for name, keys in defaults.items()))
        self.settings: Settings = read_settings(self.path)
        self.group = ForkedGroup(folder, {})
        self.server = Server(f"http://127.0.0.1:{port}")
        ensure_topics(self.settings.kafka)

    def start(self, *names: str, broken: Mapping[str, str] | None = None) -> dict[str, Child]:
        """Start these processes by name: worker, trainer, server; some as broken builds (`tests.system.broken`)."""
        rooms: dict[str, tuple[str, ...]] = {
            "worker": ("stream", "worker"),
            "trainer": ("trainer",),
            "server": ("serving",),
        }
        config = ("--config", str(self.path))
        commands = {"worker": "worker", "trainer": "train"}
        for name, build in (broken or {}).items():
            rooms[name] = ("tests.system.broken", build, commands[name])
        return {name: self.group.start(name, "-m", *rooms[name], *config) for name in names}

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Poll a condition; if a child dies by itself or time runs out, fail the test with the ends of the logs."""

        def holds() -> bool:
            if condition():
                return True
            self.group.check()
            return False

        try:
            wait_until(holds, timeout_s, what, every_s=0.1)
        except AssertionError as error:
            logs = "\n".join(f"  {child.name}:\n{child.last_lines(4)}" for child in self.group.children)
            raise AssertionError(f"{error}; the ends of the logs:\n{logs}") from None

    def audit_when(self, condition: Callable[[Report], bool], timeout_s: float) -> Report:
        """Audit until the condition holds; a violation at any moment ends it. Returns the last report.

        Between two audits the processes get as long as an audit takes: it reads every topic.
        """
        waited_s = 0.0
        while True:
            self.group.check()
            began_s = time.monotonic()
            report = audit(self.settings)
            if not report.passed or condition(report) or waited_s > timeout_s:
                return report
            took_s = time.monotonic() - began_s
            time.sleep(took_s)
            waited_s += 2 * took_s / crowding()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.group.stop()
        self.server.close()


def is_learned(report: Report) -> bool:
    """Whether nothing is in flight any more."""
    sums = report.sums
    all_new = 0 < sums["num_interactions"] == sums["num_delivered"] == sums["num_trained"]
    return all_new and sums["num_feedback_delivered"] == sums["num_feedback_trained"]


def explain(report: Report) -> str:
    """The ends of the logs, for the message of a failed assertion."""
    lines = [f"{check.name}: {check.found}; {check.violations.num} violations" for check in report.checks]
    return "\n".join(
        [*lines, *(f"  {words}" for check in report.checks for words in check.violations), str(report.sums)]
    )


class Watcher(threading.Thread):
    """Keeps asking the server for its version, and records the answers in order. A context manager."""

    def __init__(self, server: Server) -> None:
        super().__init__(name="watcher", daemon=True)
        self._server = server
        self._stopped = threading.Event()
        self.seen: list[tuple[int, int]] = []

    def __enter__(self) -> Watcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self) -> None:
        """Ask until `stop`."""
        while not self._stopped.wait(0.05):
            version = self._server.version().get("version")
            if version:
                self.seen.append((version["epoch"], version["number"]))

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        self.join(60)


def try_audit(settings: Settings) -> Report | None:
    """An audit, or None while the broker is away."""
    try:
        return audit(settings)
    except (KafkaError, BrokerUnavailable, TopicMissing):
        return None


def _section(name: str, keys: dict[str, Any]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in keys.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)
