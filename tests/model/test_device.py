"""The device that the configuration asks for."""

import importlib.util
from unittest import mock

import pytest
import torch

from model.device import choose_device
from wire.errors import ConfigError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r'serving.device: expected a CUDA GPU .* use "auto" or "cpu"'):
        choose_device("cuda", "serving.device")
    assert choose_device("auto", "serving.device").type == "cpu"


def test_the_processor_is_taken_when_asked_for() -> None:
    assert choose_device("cpu", "trainer.device").type == "cpu"


@pytest.mark.parametrize(
    ("capability", "hip", "found", "says"),
    [
        ((7, 5), None, "triton", r"Tesla T4 with compute capability 7\.5 \(Triton supports 8\.0 or later\)"),
        ((9, 0), "6.4", "triton", "a build of torch for AMD"),
        ((9, 0), None, None, "a Python without Triton"),
    ],
    ids=["too old", "AMD", "no Triton"],
)
def test_a_gpu_that_the_kernels_do_not_run_on_is_refused_and_auto_says_why_it_is_not_used(
    capability: tuple[int, int], hip: str | None, found: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
    there = {"is_available": True, "get_device_capability": capability, "get_device_name": "Tesla T4"}
    with mock.patch.multiple(torch.cuda, **{name: mock.Mock(return_value=value) for name, value in there.items()}):
        with pytest.raises(ConfigError, match=rf'^trainer.device: expected a CUDA GPU for "cuda", got {says}.*; use'):
            choose_device("cuda", "trainer.device")
        with pytest.warns(UserWarning, match=f"^trainer.device: computing on the processor: .*{says}"):
            assert choose_device("auto", "trainer.device").type == "cpu"
        assert choose_device("cpu", "trainer.device").type == "cpu"


def test_a_gpu_that_the_kernels_run_on_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: "triton")
    there = {"is_available": True, "get_device_capability": (8, 0)}
    with mock.patch.multiple(torch.cuda, **{name: mock.Mock(return_value=value) for name, value in there.items()}):
        assert choose_device("auto", "trainer.device").type == choose_device("cuda", "x").type == "cuda"
