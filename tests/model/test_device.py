"""The device that the configuration asks for."""

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
