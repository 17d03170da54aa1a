"""The whole loop on one machine, on real ratings: broker, worker, trainer and server as separate processes.

Actions are sent at the highest rate that the loop can sustain: sending pauses while too many of them wait to be
learned, so the freshness shown is that of a loop that keeps up.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from kafka.errors import KafkaError
from rich.console import Console

from headrace.audit import audit
from headrace.broker import EmbeddedBroker, free_port
from headrace.config import Settings, read_settings
from headrace.dataset import Dataset, DatasetError, open_dataset
from headrace.environment import CLIENT, unset_settings
from headrace.interrupts import clear_up_from_here, heed_interrupts, status_of_interrupt
from headrace.lag_view import Follower, LagView
from headrace.processes import ProcessGroup
from headrace.recommendation import DatasetProfile, RecommendationCheck, Server, choose_user, has_learned, new_actions
from headrace.report import Report, print_report
from headrace.screen import Screen, open_screen
from headrace.sentences import say
from headrace.summary import print_summary, summarise
from serving.titles import Titles
from stream.files import read_actions
from stream.producer import BatchConfig
from stream.sender import SendReport, send_actions
from wire.kafka.admin import delete_topics, ensure_topics

START_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 480.0
LEARN_TIMEOUT_S = 90.0
MIN_AHEAD, AHEAD_S = 1_000, 2.0
"""Sending pauses while more actions than this, and more than the trainer learns in that time, are waiting."""
FRAME_S = 0.25


def run_demo(
    *,
    dataset: Path | None = None,
    bootstrap: str | None = None,
    duration_s: float | None = None,
    as_json: bool = False,
    keep: Path | None = None,
    stay: bool = False,
    port: int | None = None,
) -> int:
    """Run it; returns the exit status: 0, 1 if the audit found a violation, 130 after Ctrl-C (after another
    signal: 128 and its number)."""
    heed_interrupts(signal.SIGHUP)  # a terminal that is closed
    if unset := unset_settings(*(CLIENT if bootstrap else ())):
        say(f"headrace demo: not used, since they are a deployment's settings: {', '.join(unset)}", is_error=True)
    clear_up_from_here()
    try:
        with ExitStack() as stack:
            folder = _folder(stack, keep)
            demo = Demo(stack, folder, open_dataset(dataset), bootstrap, duration_s, as_json, port)
            return demo.run(stay=stay)
    except KeyboardInterrupt:
        print("\nheadrace: stopped; everything it started has ended", file=sys.stderr)
        return status_of_interrupt()


def conclude(report: Report, summary: dict[str, Any], *, as_json: bool) -> int:
    """Print the results; returns the exit status: 1 if the audit found a violation."""
    console = Console()
    print_report(report, console)
    print_summary(summary, console)
    if as_json:
        print(json.dumps(summary, ensure_ascii=False), flush=True)
    return 0 if report.passed else 1


def _folder(stack: ExitStack, keep: Path | None) -> Path:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise DatasetError(f"--keep: expected an empty folder, got {keep} with files in it; name another")
        return keep.resolve()
    folder = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Demo:
    """One run. ``stack`` ends what it starts, in reverse order."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        dataset: Dataset,
        bootstrap: str | None,
        duration_s: float | None,
        as_json: bool,
        port: int | None = None,
    ) -> None:
        self.stack = stack
        self.folder = folder
        self.dataset = dataset
        self.duration_s = duration_s
        self.as_json = as_json
        self.view = LagView(dataset=dataset.name, broker=bootstrap or "an embedded broker")
        self.screen: Screen = open_screen(self.view, plain=as_json)
        self.profile = DatasetProfile()
        self.group = ProcessGroup(folder, {})
        self._bootstrap, self._port = bootstrap, port
        self._prefix = f"headrace-demo-{uuid.uuid4().hex[:8]}"
        self.sent: SendReport | None = None
        self._failure: BaseException | None = None
        self._stopping = threading.Event()

    def _prepare(self) -> None:
        """Read the data set, start the broker if none was named, and write the configuration."""
        self.profile.add(read_actions(self.dataset.path))
        self.view.num_actions = self.profile.num_actions
        self.settings = self._configure(self._bootstrap, self._port)
        self.view.page = f"http://127.0.0.1:{self.settings.serving.port}"
        self.server = Server(self.view.page)

    def _configure(self, bootstrap: str | None, port: int | None) -> Settings:
        """Start the broker if none was named, and write the file that every process reads."""
        if bootstrap is None:
            broker = self.stack.enter_context(EmbeddedBroker(log_path=self.folder / "broker.log"))
            bootstrap = broker.bootstrap
        kinds, titles = list(self.profile.kinds), self.folder / "titles.tsv"
        titles.write_text(Titles.text_of(self.dataset.titles), encoding="utf-8")
        sections: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap": bootstrap, "prefix": self._prefix, "partitions": 2},
            "action": {"kinds": kinds},
            # A rating is complete when it arrives; live feedback comes in pieces.
            "sequence": {"join_window_s": 0.0 if "rate" in kinds else 60.0},
            "store": {"path": str(self.folder / "store")},
            "stream": {"metrics_port": 0},
            # A checkpoint soon, so that the page has a frozen copy to compare with.
            "trainer": {
                "checkpoint_dir": str(self.folder / "checkpoints"),
                "checkpoint_every_s": 5.0,
                "publish_every_s": 1.0,
            },
            "serving": {"port": port or free_port(), "titles_file": str(titles), "allow_actions": True},
        }
        path = self.folder / "headrace.toml"
        lines = [
            f"[{name}]\n" + "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in keys.items())
            for name, keys in sections.items()
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
        settings = read_settings(path)
        assert settings.kafka.prefix == self._prefix, "whose topics are deleted at the end"
        return settings

    def run(self, *, stay: bool = False) -> int:
        """From an empty broker to the summary; with ``stay``, keep running until Ctrl-C."""
        view, screen = self.view, self.screen
        self._prepare()
        ensure_topics(self.settings.kafka)
        self.stack.callback(self._delete_topics)
        self.stack.callback(self.server.close)
        self.stack.enter_context(self.group)
        config = ("--config", str(self.folder / "headrace.toml"))
        self.group.start("worker", "-m", "stream", "worker", *config)
        self.group.start("trainer", "-m", "trainer", *config)
        self.group.start("server", "-m", "serving", *config)
        follower = Follower(self.settings, view)
        follower.start()
        self.stack.callback(follower.stop)
        with screen:
            self._until(lambda: bool(view.lag), START_TIMEOUT_S, "starting", "a first message of the lag topic")
            self._send_all()
            self._until(
                lambda: view.is_drained,
                DRAIN_TIMEOUT_S,
                "learning the rest",
                "everything sent to be learned and served",
            )
            check = self._check_recommendations()
            view.phase = "auditing"
            screen.show()
        report = audit(self.settings)
        assert self.sent is not None
        summary = summarise(self.settings, self.dataset, view, self.sent, check, report)
        if not stay:
            self.group.stop()
        status = conclude(report, summary, as_json=self.as_json)
        if stay:
            print(f"\nThe page: {view.page} (Ctrl-C ends everything)", flush=True)
            self.group.wait_until(lambda: False, float("inf"), "Ctrl-C")
        return status

    def _delete_topics(self) -> None:
        """Leave nothing behind on the user's own broker; the embedded one forgets everything anyway."""
        if self.view.broker == self.settings.kafka.bootstrap:
            with suppress(KafkaError):
                delete_topics(self.settings.kafka)

    def _until(self, condition: Any, timeout_s: float, phase: str, what: str) -> None:
        """Wait for ``condition`` while the screen is kept up to date."""
        self.view.phase = phase

        def holds() -> bool:
            if self._failure is not None:
                raise self._failure
            self._look()
            return bool(condition())

        self.group.wait_until(holds, timeout_s, what, every_s=FRAME_S)

    def _look(self) -> None:
        self.view.served = self.server.version() or self.view.served
        self.screen.show()

    # Sending

    def _send_all(self) -> None:
        thread = threading.Thread(target=self._send, name="send", daemon=True)
        self.stack.callback(self._stopping.set)
        thread.start()
        next_s = 0.0

        def is_over() -> bool:
            nonlocal next_s
            fresh = self.view.served.get("freshness_s")
            if fresh is not None and time.monotonic() >= next_s:
                next_s = time.monotonic() + 1.0
                self.view.freshness_s.append(float(fresh))
            return not thread.is_alive()

        self._until(is_over, self.duration_s + 60 if self.duration_s else 3600.0, "sending", "sending to end")
        if self._failure is not None:
            raise self._failure

    def _send(self) -> None:
        try:
            self.sent = send_actions(
                self._paced(), self.settings.kafka, batch=BatchConfig.within(self.settings.action),
                progress=self.view.note_sent,
            )  # fmt: skip
        except BaseException as error:  # noqa: BLE001 (raised again in the main thread)
            self._failure = error

    def _paced(self) -> Iterator[Mapping[str, Any]]:
        """The actions, as fast as the pipeline keeps up, until the time is up."""
        ends_s = time.monotonic() + (self.duration_s or float("inf"))
        for index, action in enumerate(read_actions(self.dataset.path)):
            if index % 200 == 0:
                self.view.note_sent(index)
                while index - self.view.num_trained > self._allowed() and not self._stopping.is_set():
                    time.sleep(0.02)
                if self._stopping.is_set() or time.monotonic() > ends_s:
                    return
            yield action

    def _allowed(self) -> float:
        return max(MIN_AHEAD, AHEAD_S * float(self.view.lag.get("throughput", {}).get("interactions_per_s", 0.0)))

    # Before and after

    def _check_recommendations(self) -> RecommendationCheck:
        self.view.phase = "asking for recommendations"
        self.screen.show()
        check = choose_user(self.server, self.profile)
        if not check.new:
            return check
        num_history = int(self.server.recommend(check.user)["num_history"])
        actions = new_actions(check, self.profile.last, list(self.profile.kinds))
        holds = has_learned(
            self.server,
            check,
            int(self.view.served["num_interactions"]) + len(actions),
            min(num_history + len(actions), self.settings.sequence.max_context),
        )
        send_actions(actions, self.settings.kafka, batch=BatchConfig.within(self.settings.action))
        self._until(holds, LEARN_TIMEOUT_S, "learning five new actions", "the new actions to be learned and served")
        return check
