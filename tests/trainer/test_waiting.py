"""A trainer whose environment is not as it should be."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import TrainerConfig
from trainer.lag.progress import Progress
from trainer.lag.reporter import LagReporter
from wire.config import KafkaConfig
from wire.errors import ConfigError, HeadraceError

ROOT = Path(__file__).resolve().parents[2]


def test_a_trainer_that_waits_for_its_broker_ends_when_it_is_told_to(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", "--bootstrap", "127.0.0.1:1", "--checkpoint-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert any("broker away" in line for line in process.stdout), "it says what it waits for"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_metrics_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            HeadraceError, match=rf"trainer\.metrics_port: expected to listen on 127\.0\.0\.1:{port}, got: "
        ) as refused:
            LagReporter(KafkaConfig(), TrainerConfig(metrics_port=port), Progress).start()
    assert not isinstance(refused.value, ConfigError), "whose exit status would keep a supervisor from trying again"


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_not_said_to_be_a_port_in_use(host: str) -> None:
    told = rf"trainer\.metrics_host: expected to listen on {host}:29555, got: .*0\.0\.0\.0 for all"
    with pytest.raises(HeadraceError, match=told):
        LagReporter(KafkaConfig(), TrainerConfig(metrics_host=host, metrics_port=29555), Progress).start()


DETERMINISTIC = """
import sys, torch
from trainer.config import TrainerConfig
from trainer.device import choose_device
choose_device(TrainerConfig(device="cpu", deterministic=True))
assert torch.are_deterministic_algorithms_enabled()
assert not {"triton", "torch._inductor"} & set(sys.modules), "they write to stderr when the process ends"
"""


def test_a_deterministic_trainer_loads_no_compiler_that_would_have_the_last_word_on_stderr() -> None:
    done = subprocess.run([sys.executable, "-c", DETERMINISTIC], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
