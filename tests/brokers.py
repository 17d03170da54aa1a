"""Brokers for tests: real Apache Kafka if Java and Maven are present, otherwise the embedded one.

`start_broker` gives a `Broker`: ``bootstrap``, ``kind``, ``durable``, ``kill()`` (SIGKILL), ``restart()`` on the same
port (on the same data, if it is durable) and ``stop()``. ``HEADRACE_REQUIRE_KAFKA=1`` makes anything but real Kafka an
error.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

REPOSITORY = Path(__file__).resolve().parents[1]
POM = REPOSITORY / "tests" / "pom.xml"
MIN_JAVA = 17

SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=4194304
log.cleaner.backoff.ms=500
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=500
"""


class Broker(Protocol):
    """A single-node broker under a test's control."""

    bootstrap: str
    kind: str
    """``apache`` or ``embedded``."""
    durable: bool
    """Whether records survive `kill` and `restart`."""

    def kill(self) -> None: ...
    def restart(self) -> None: ...
    def stop(self) -> None: ...


_given: set[int] = set()
"""Ports that may be used only later, as those of a module's constants."""


def free_port() -> int:
    """A TCP port that nothing on this machine listens on, and another one each time.

    It is below the range that the kernel uses for outgoing connections, and in a part that belongs to this process of
    pytest-xdist, so neither a client nor a concurrent test takes the port before it is used.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
    for _ in range(100):
        port = 20_000 + 1_000 * worker + random.SystemRandom().randrange(1_000)
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise RuntimeError("expected a free port between 20000 and 31999, found none in a hundred tries")


MAX_POLL_S = 2.0


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.05) -> None:
    """Poll ``condition`` until it holds. Raises AssertionError, naming ``what``, if it does not within ``timeout_s``.

    The timeout is for an idle machine: it grows with the load, and a poll counts as `MAX_POLL_S` at most, because one
    that takes longer tells of the machine.
    """
    waited_s, last_s = 0.0, time.monotonic()
    while not condition():
        now_s = time.monotonic()
        waited_s, last_s = waited_s + min(now_s - last_s, MAX_POLL_S) / crowding(), now_s
        if waited_s > timeout_s:
            raise AssertionError(f"waited {timeout_s:g} s in vain for: {what}")
        time.sleep(every_s)


def crowding() -> float:
    """How many processes share a processor at present, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def kafka_version() -> str:
    """The version of Apache Kafka that ``tests/pom.xml`` names."""
    found = re.search(r"<kafka\.version>(.+?)</kafka\.version>", POM.read_text())
    assert found, f"{POM} names no kafka.version"
    return found[1]


def missing_for_kafka() -> str | None:
    """Why real Kafka cannot run here, or None."""
    java = shutil.which("java")
    if java is None:
        return "no java on PATH"
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < MIN_JAVA:
        return f"java {MIN_JAVA} or newer expected, got {version[1] if version else said!r}"
    if shutil.which("mvn") is None and not _jars_marker().exists():
        return "no mvn on PATH"
    return None


def _jars_marker() -> Path:
    return REPOSITORY / ".cache" / "kafka" / kafka_version() / ".complete"


def kafka_jars() -> Path:
    """The folder of Kafka's jars, fetched by Maven once per version (several test runs may ask at once)."""
    marker = _jars_marker()
    marker.parent.mkdir(parents=True, exist_ok=True)
    with (marker.parent.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stale = not marker.exists() or marker.read_text() != POM.read_text()
        if stale:
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
            marker.write_text(POM.read_text())
    return marker.parent


def broker_in_use() -> str:
    """One line saying which broker the tests will run on, and why if it is not the real one."""
    missing = missing_for_kafka()
    if missing is None:
        return f"Apache Kafka {kafka_version()} (KRaft, single node)"
    return f"embedded Tansu broker, memory only; kill tests of the broker are skipped ({missing})"


def start_broker(folder: Path) -> Broker:
    """Start the best broker that this machine can run; its data and logs go to ``folder``."""
    missing = missing_for_kafka()
    if missing is None:
        return ApacheKafka(folder)
    if os.environ.get("HEADRACE_REQUIRE_KAFKA") == "1":
        raise RuntimeError(f"HEADRACE_REQUIRE_KAFKA=1 but real Kafka cannot run: {missing}")
    return EmbeddedKafka()


def remove_topics(broker: Broker, prefix: str) -> None:
    """Remove the topics whose names begin with ``prefix``, if the broker runs."""
    from kafka import KafkaAdminClient

    if not _listens(broker.bootstrap):
        return
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        admin.delete_topics([name for name in admin.list_topics() if name.startswith(prefix)])
    finally:
        admin.close()


@contextlib.contextmanager
def taken_back(broker: Broker, topic: str, *, whole: bool = False) -> Iterator[None]:
    """A broker that is down when the block ends, with the topic's records as they were when it began, under the same
    id: as after a restore from an older copy. ``whole``: everything else on its disk too. Real Apache Kafka alone."""
    assert isinstance(broker, ApacheKafka)
    broker.kill()
    data, kept = broker.folder / "data", broker.folder / "older"
    folders = [data] if whole else list(data.glob(f"{topic}-*"))
    for each in folders:
        shutil.copytree(each, kept / each.name)
    broker.restart()
    yield
    broker.kill()
    for each in folders:
        shutil.rmtree(each)
        (kept / each.name).rename(each)
    kept.rmdir()


def _dies_with_us() -> list[str]:
    """A command prefix that makes a child end when this process does, however it ends (Linux)."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


class ApacheKafka:
    """A real broker: KRaft, one node, small heap, its data in ``folder``."""

    kind = "apache"
    durable = True

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._classpath = f"{kafka_jars()}/*"
        self._properties = folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        ports = {"port": self.port, "controller_port": free_port()}
        text = SERVER_PROPERTIES.format(**ports, data=folder / "data")
        # If a setting occurs twice, the last one counts.
        more = [f"{name}={value.format(**ports)}\n" for name, value in settings.items()]
        self._properties.write_text(text + "".join(more))
        self._format()
        self.restart()

    def _java(self, log: IO[bytes], *arguments: str) -> subprocess.Popen[bytes]:
        command = [
            *_dies_with_us(),
            *("java", "-Xmx512m", "-Xms128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"),
            *("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", self._classpath),
            *arguments,
        ]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder)

    def _format(self) -> None:
        with (self.folder / "format.log").open("wb") as log:
            cluster = uuid.uuid4().hex[:22]
            formatted = self._java(log, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties))
        if formatted.wait(60) != 0:
            raise RuntimeError(f"Kafka storage format failed:\n{(self.folder / 'format.log').read_text()}")

    def restart(self) -> None:
        """Start the broker (again) on the same port and data, unless it runs; returns when it answers."""
        if self._process is not None:
            return
        log_path = self.folder / "broker.log"
        with log_path.open("ab") as log:
            self._process = process = self._java(log, "kafka.Kafka", str(self._properties))

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"Kafka ended with {process.returncode} at start:\n{log_path.read_text()[-4000:]}")
            return _answers(self.bootstrap)

        wait_until(answers, 120, f"Kafka at {self.bootstrap}")

    def told(self) -> str:
        """The end of its log, with what its threads wait for."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            time.sleep(2.0)
        return (self.folder / "broker.log").read_text(errors="replace")[-60_000:]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It answers nothing until the block ends; what it is sent meanwhile waits in the kernel."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; unlike in a power cut, the page cache survives."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End for good, also by SIGKILL: the data are not needed again, and an orderly stop takes seconds."""
        self.kill()
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _end(self, signal_number: int) -> None:
        if self._process is not None:
            self._process.send_signal(signal_number)
            self._process.wait(60)
            self._process = None


class EmbeddedKafka:
    """The broker of the demo. Its records are in memory only, so `kill` loses them."""

    kind = "embedded"
    durable = False

    def __init__(self) -> None:
        from headrace.broker import EmbeddedBroker

        self._broker = EmbeddedBroker(free_port())
        self._broker.start()
        self.bootstrap = self._broker.bootstrap

    def kill(self) -> None:
        self._broker.kill()

    def restart(self) -> None:
        if not self._broker.is_running():
            self._broker.start()

    def stop(self) -> None:
        self._broker.stop()


def forget_refused_sockets() -> None:
    """Collect the sockets that kafka-python leaves open when a connection is refused; no test is to blame for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _listens(bootstrap: str) -> bool:
    host, port = bootstrap.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _answers(bootstrap: str) -> bool:
    """Whether a broker answers and has joined its cluster."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    if not _listens(bootstrap):
        return False
    try:
        client = KafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    except (KafkaError, OSError):
        return False
    try:
        return bool(client.describe_cluster()["brokers"])
    except (KafkaError, OSError):
        return False
    finally:
        client.close()


if __name__ == "__main__":
    # A broker for experiments: `python -m tests.brokers FOLDER` runs one until it is interrupted.
    broker = start_broker(Path(sys.argv[1]))
    print(f"{broker_in_use()} at {broker.bootstrap}", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        broker.stop()
