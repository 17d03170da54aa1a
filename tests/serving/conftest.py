"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.nursery import Nursery
from tests.serving.wire import server_environment


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where server processes come from."""
    made = Nursery(tmp_path_factory.mktemp("servers"), "serving", server_environment())
    yield made
    made.close()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tensors here are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)
