"""Fixtures of the server's tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tensors here are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)
