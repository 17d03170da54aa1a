"""Tests that need an NVIDIA GPU: `make test-gpu`. Without one they are skipped with that reason."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable

import pytest
import torch

from bench.on_gpu.report import gpu_works

LOST = 3
"""The exit code of a worker whose GPU context is lost."""


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    here = [item for item in items if "gpu" in item.path.parts or item.path.parent.name == "gpu"]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """End a worker whose GPU context a test has broken: whatever it ran next would fail. Another one takes its place,
    and one test, which did not run, is reported as crashed."""
    ran = yield
    if "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_available() and not gpu_works():
        time.sleep(1.0)  # until the broken test is reported
        os._exit(LOST)
    return ran
