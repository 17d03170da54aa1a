"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.process_factory import ProcessFactory
from tests.serving.wire import server_environment


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessFactory]:
    """Starts server processes."""
    made = ProcessFactory(tmp_path_factory.mktemp("servers"), "serving", server_environment())
    yield made
    made.close()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread: the tensors here are tiny, and threads would only wait for each other."""
    torch.set_num_threads(1)
